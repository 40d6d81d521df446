"""Short names for the tensors of a .tflite that litert-torch made.

It names a tensor by the path of modules with the class of each, and one that it made of several by
all of their paths: 300 KB in `tiny`. Reports and recipes show the short ones.
"""

import re

from exporters.tflite.graph import pack, products, unpacked

# The module whose parts the names begin with, in all paths.
_NETWORK = "trainer.model.rfdetr.RFDETR_model"
_LINEAR = re.compile(r"/torch\.nn\.modules\.(linear|conv)\.\w+$")


def renamed(content: bytes) -> bytes:
    """The same model, its inputs and outputs named as in the signature, and all names different.

    Of several tensors that would have the same name a layer's result has it, the others a number.
    """
    model = unpacked(content)
    (graph,) = model.subgraphs
    names = [short_name(tensor.name.decode()) for tensor in graph.tensors]
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            names[entry.tensorIndex] = entry.name.decode()
    layers = {product.name for product in products(content)}
    order = sorted(range(len(names)), key=lambda at: graph.tensors[at].name.decode() not in layers)
    taken: set[str] = set()
    for place in order:
        graph.tensors[place].name = _unique(names[place], taken)
    return pack(model)


def short_name(name: str) -> str:
    """`encoder/Block_3/attention/query` for where that layer is; others as they are.

    Of several paths the first that ends in a linear layer or a convolution, else the longest.
    """
    paths = [path for path in name.split(";") if _NETWORK in path]
    if not paths:
        return name
    layers = [path for path in paths if _LINEAR.search(path)]
    path = layers[0] if layers else max(paths, key=len)
    parts = path[path.index(_NETWORK) :].split("/")
    return "/".join(map(_part, parts[1:])) or "network"


def _part(module: str) -> str:
    """`query` of `torch.nn.modules.linear.Linear_query`; `Block_3`, as a number says too little."""
    kind, _, attribute = module.rpartition(".")[2].partition("_")
    return f"{kind}_{attribute}" if attribute.isdigit() else attribute


def _unique(name: str, taken: set[str]) -> str:
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}:{count}"
    taken.add(found)
    return found
