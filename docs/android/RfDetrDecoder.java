import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/**
 * What the outputs of an RF-DETR artifact of rfdetr-edge mean: the reference of docs/mobile.md.
 *
 * <p>Plain Java 8 without any library, so that an Android app can take this file as it is. All
 * arrays are flat, row by row, as a FloatBuffer of LiteRT gives them, and hold one image. The
 * package is left out: put it where it belongs in your app.
 */
public final class RfDetrDecoder {
    /** Numbers a keypoint has in the output. */
    private static final int CHANNELS = 8;

    private static final double TINY = 1e-12;

    private final int classSlots;
    private final int numSelect;
    private final int[] keypointCounts;
    private final int widest;
    private final double traceAlpha;

    /** A decoder of boxes, or of boxes and masks; arguments as below. */
    public RfDetrDecoder(int classSlots, int numSelect) {
        this(classSlots, numSelect, new int[0], 0.0);
    }

    /**
     * All of these are in the metadata of the artifact.
     *
     * @param classSlots length of classes.slots, the background slot included
     * @param numSelect num_select
     * @param keypointCounts length of names of each entry of keypoints.classes; empty without
     * @param traceAlpha keypoints.trace_alpha
     */
    public RfDetrDecoder(int classSlots, int numSelect, int[] keypointCounts, double traceAlpha) {
        this.classSlots = classSlots;
        this.numSelect = numSelect;
        this.keypointCounts = keypointCounts.clone();
        int most = 0;
        for (int count : keypointCounts) {
            most = Math.max(most, count);
        }
        this.widest = most;
        this.traceAlpha = traceAlpha;
    }

    /** One object. Pixels count from the upper left corner of the image, whose size is decode's. */
    public static final class Detection {
        /** The row of dets, labels, masks and keypoints that it comes from. */
        public final int query;

        /** The class slot: a row of classes.slots. */
        public final int classId;

        /** 0 to 1. */
        public final float confidence;

        /** Corners of the box in pixels, within the image. */
        public final float left;
        public final float top;
        public final float right;
        public final float bottom;

        /** The points of its class in the order of the metadata; empty without keypoints. */
        public final List<Keypoint> keypoints;

        Detection(int query, int classId, float confidence, float[] box, List<Keypoint> keypoints) {
            this.query = query;
            this.classId = classId;
            this.confidence = confidence;
            this.left = box[0];
            this.top = box[1];
            this.right = box[2];
            this.bottom = box[3];
            this.keypoints = Collections.unmodifiableList(keypoints);
        }
    }

    /** One point. Its covariance is NaN where it is no finite number. */
    public static final class Keypoint {
        /** Pixels; may lie outside the image. */
        public final float x;
        public final float y;

        /** 0 to 1: that the point can be found. */
        public final float confidence;

        /** Covariance of x and y in pixels squared, relative: see docs/mobile.md. */
        public final float xx;
        public final float xy;
        public final float yy;

        Keypoint(float x, float y, float confidence, float[] covariance) {
            this.x = x;
            this.y = y;
            this.confidence = confidence;
            this.xx = covariance[0];
            this.xy = covariance[1];
            this.yy = covariance[2];
        }
    }

    /**
     * The objects of one image, highest class score first.
     *
     * @param dets (queries, 4)
     * @param labels (queries, classSlots)
     * @param keypoints (queries, classes of the schema * widest, 8), or null without
     * @param width of the image that was resized to the input, in pixels; its height follows
     * @param threshold only what has a confidence above it is kept
     */
    public List<Detection> decode(
            float[] dets,
            float[] labels,
            float[] keypoints,
            int width,
            int height,
            float threshold) {
        int queries = labels.length / classSlots;
        int points = keypointCounts.length * widest * CHANNELS;
        check(dets.length, queries * 4, "dets");
        check(labels.length, queries * classSlots, "labels");
        check(keypoints == null ? 0 : keypoints.length, queries * points, "keypoints");
        float[] scores = new float[labels.length];
        long[] ranked = new long[labels.length];
        for (int pair = 0; pair < labels.length; pair++) {
            scores[pair] = 1f / (1f + (float) Math.exp(-labels[pair]));
            // The bits of floats from 0 on sort as the floats do, NaN last. Turned round, and with
            // the place behind them: highest first, and of equal ones the first.
            long turned = Integer.MAX_VALUE - Float.floatToIntBits(scores[pair]);
            ranked[pair] = turned << 32 | pair;
        }
        Arrays.sort(ranked);
        List<Detection> found = new ArrayList<>();
        for (int rank = 0; rank < Math.min(numSelect, ranked.length); rank++) {
            int pair = (int) ranked[rank];
            int query = pair / classSlots;
            int slot = pair % classSlots;
            float confidence = scores[pair];
            int first = query * points + slot * widest * CHANNELS;
            boolean inSchema = slot < keypointCounts.length;
            if (inSchema && traceAlpha != 0) {
                confidence = fused(confidence, keypoints, first, keypointCounts[slot]);
            }
            if (confidence > threshold) {
                List<Keypoint> own = new ArrayList<>();
                for (int point = 0; inSchema && point < keypointCounts[slot]; point++) {
                    own.add(keypoint(keypoints, first + point * CHANNELS, width, height));
                }
                float[] box = box(dets, query * 4, width, height);
                found.add(new Detection(query, slot, confidence, box, own));
            }
        }
        return found;
    }

    /**
     * The mask of a detection: the image row by row, true inside. It is not cut to the box.
     *
     * @param masks (queries, rows, columns), the output
     * @param query of the detection
     */
    public static boolean[] mask(
            float[] masks, int rows, int columns, int query, int width, int height) {
        Axis down = new Axis(rows, height);
        Axis across = new Axis(columns, width);
        boolean[] inside = new boolean[height * width];
        for (int y = 0; y < height; y++) {
            int near = (query * rows + down.near[y]) * columns;
            int far = (query * rows + down.far[y]) * columns;
            for (int x = 0; x < width; x++) {
                int left = across.near[x];
                int right = across.far[x];
                float upper = across.blend(x, masks[near + left], masks[near + right]);
                float lower = across.blend(x, masks[far + left], masks[far + right]);
                inside[y * width + x] = down.blend(y, upper, lower) > 0;
            }
        }
        return inside;
    }

    /** Bilinear resize of one axis: half-pixel centres, edges repeated, no antialias. */
    private static final class Axis {
        final int[] near;
        final int[] far;
        private final float[] weight;

        Axis(int cells, int pixels) {
            near = new int[pixels];
            far = new int[pixels];
            weight = new float[pixels];
            float scale = (float) cells / pixels;
            for (int pixel = 0; pixel < pixels; pixel++) {
                float centre = (float) (scale * (pixel + 0.5) - 0.5);
                centre = Math.min(Math.max(centre, 0f), cells - 1);
                near[pixel] = (int) centre;
                far[pixel] = Math.min(near[pixel] + 1, cells - 1);
                weight[pixel] = centre - near[pixel];
            }
        }

        float blend(int pixel, float first, float second) {
            return first * (1 - weight[pixel]) + second * weight[pixel];
        }
    }

    private static float[] box(float[] dets, int at, int width, int height) {
        float halfWidth = 0.5f * Math.max(dets[at + 2], 0f);
        float halfHeight = 0.5f * Math.max(dets[at + 3], 0f);
        return new float[] {
            clamped((dets[at] - halfWidth) * width, width),
            clamped((dets[at + 1] - halfHeight) * height, height),
            clamped((dets[at] + halfWidth) * width, width),
            clamped((dets[at + 1] + halfHeight) * height, height),
        };
    }

    private static float clamped(float place, float side) {
        return Math.min(Math.max(place, 0f), side);
    }

    /** A class score, lowered by how uncertain the points of the class are. */
    private float fused(float score, float[] keypoints, int first, int count) {
        double[] weights = new double[count];
        double[] weighted = new double[count];
        for (int point = 0; point < count; point++) {
            int at = first + point * CHANNELS;
            weights[point] = Math.log(Math.max(sigmoid(keypoints[at + 2]), TINY));
            weighted[point] = weights[point] + logTrace(keypoints, at + 4);
        }
        double logMean = count == 0 ? 0 : logSum(weighted) - logSum(weights);
        double fused = sigmoid(Math.log(score) - traceAlpha * logMean);
        return Math.min((float) fused, Math.nextAfter(1f, 0.0));
    }

    /** Log of the trace of the covariance, relative to the image. */
    private static double logTrace(float[] keypoints, int at) {
        double first = -2.0 * keypoints[at];
        double second = -2.0 * keypoints[at + 2];
        double mixed = 2 * Math.log(Math.max(Math.abs(keypoints[at + 1]), TINY)) + first + second;
        return logSum(new double[] {first, second, mixed});
    }

    /** Log of the sum of exp, without overflow. */
    private static double logSum(double[] values) {
        double largest = Double.NEGATIVE_INFINITY;
        for (double value : values) {
            largest = Math.max(largest, value);
        }
        if (Double.isInfinite(largest)) {
            return largest;
        }
        double sum = 0;
        for (double value : values) {
            sum += Math.exp(value - largest);
        }
        return largest + Math.log(sum);
    }

    private static Keypoint keypoint(float[] keypoints, int at, int width, int height) {
        double l11 = Math.exp(keypoints[at + 4]);
        double l21 = keypoints[at + 5];
        double l22 = Math.exp(keypoints[at + 6]);
        double scale = 1 / ((l11 * l22) * (l11 * l22));
        float[] covariance = {
            (float) ((double) width * width * (l21 * l21 + l22 * l22) * scale),
            (float) ((double) width * height * (-l11 * l21) * scale + 0.0), // no -0.0
            (float) ((double) height * height * (l11 * l11) * scale),
        };
        for (float entry : covariance) {
            if (Float.isNaN(entry) || Float.isInfinite(entry)) {
                Arrays.fill(covariance, Float.NaN);
            }
        }
        float confidence = (float) sigmoid(keypoints[at + 2]);
        return new Keypoint(
                keypoints[at] * width, keypoints[at + 1] * height, confidence, covariance);
    }

    private static double sigmoid(double logit) {
        return 1 / (1 + Math.exp(-logit));
    }

    private static void check(int found, int wanted, String name) {
        if (found != wanted) {
            throw new IllegalArgumentException(
                    name + " has " + found + " numbers instead of " + wanted);
        }
    }
}
