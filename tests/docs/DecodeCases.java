import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.List;

/**
 * Decodes images from stdin and writes what was found to stdout, for test_android.py.
 *
 * <p>Numbers are int32 or float32, trace_alpha float64, all big-endian; an array is its length,
 * then its numbers.
 */
final class DecodeCases {
    private DecodeCases() {}

    public static void main(String[] arguments) throws IOException {
        try (DataInputStream in = new DataInputStream(new BufferedInputStream(System.in));
                DataOutputStream out =
                        new DataOutputStream(new BufferedOutputStream(System.out))) {
            for (int cases = in.readInt(); cases > 0; cases--) {
                decode(in, out);
            }
        }
    }

    private static void decode(DataInputStream in, DataOutputStream out) throws IOException {
        int classSlots = in.readInt();
        int numSelect = in.readInt();
        int[] counts = new int[in.readInt()];
        for (int slot = 0; slot < counts.length; slot++) {
            counts[slot] = in.readInt();
        }
        double traceAlpha = in.readDouble();
        int width = in.readInt();
        int height = in.readInt();
        float threshold = in.readFloat();
        float[] dets = floats(in);
        float[] labels = floats(in);
        float[] masks = floats(in);
        int rows = in.readInt();
        int columns = in.readInt();
        float[] keypoints = floats(in);
        RfDetrDecoder decoder = new RfDetrDecoder(classSlots, numSelect);
        if (counts.length > 0) {
            decoder = new RfDetrDecoder(classSlots, numSelect, counts, traceAlpha);
        } else {
            keypoints = null;
        }
        List<RfDetrDecoder.Detection> found =
                decoder.decode(dets, labels, keypoints, width, height, threshold);
        out.writeInt(found.size());
        for (RfDetrDecoder.Detection one : found) {
            out.writeInt(one.query);
            out.writeInt(one.classId);
            write(out, one.confidence, one.left, one.top, one.right, one.bottom);
            out.writeInt(one.keypoints.size());
            for (RfDetrDecoder.Keypoint point : one.keypoints) {
                write(out, point.x, point.y, point.confidence, point.xx, point.xy, point.yy);
            }
            if (masks.length > 0) {
                for (boolean inside :
                        RfDetrDecoder.mask(masks, rows, columns, one.query, width, height)) {
                    out.writeBoolean(inside);
                }
            }
        }
    }

    private static float[] floats(DataInputStream in) throws IOException {
        float[] values = new float[in.readInt()];
        for (int at = 0; at < values.length; at++) {
            values[at] = in.readFloat();
        }
        return values;
    }

    private static void write(DataOutputStream out, float... values) throws IOException {
        for (float value : values) {
            out.writeFloat(value);
        }
    }
}
