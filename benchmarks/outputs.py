"""The files of a report: refused before anything is measured, written when all of it is."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rfdetr_edge.errors import InputError
from rfdetr_edge.files import replacing


@contextmanager
def writable(paths: Sequence[Path], *, keep: Sequence[Path]) -> Iterator[list[Path]]:
    """Gives a file to write for each path; they become these paths when the block ends.

    keep: files that must not be written over. Raises InputError for a path that is one of these,
    that is given twice, or that cannot be written.
    """
    kept = {path.resolve() for path in keep}
    with ExitStack() as stack:
        temporaries = []
        for path in paths:
            if path.resolve() in kept:
                raise InputError(f"cannot write {path}: it is used already; choose another name")
            kept.add(path.resolve())
            try:
                temporary = stack.enter_context(replacing(path))
                temporary.touch()
            except OSError as error:
                raise InputError(f"cannot write {path}: {error.strerror}") from None
            temporaries.append(temporary)
        yield temporaries
