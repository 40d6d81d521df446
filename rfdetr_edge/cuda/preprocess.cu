/* A frame of bytes becomes the input tensor: one thread for one pixel of it, all three planes.
 *
 * The convention of the resize is in the tables, which the host makes with the code that the CPU
 * path uses (rfdetr_edge.preprocess.axis_taps); here it is a weighted sum over neighbours. Also
 * compiled for the CPU by the tests, which run it against that path.
 *
 * frame: (any height, width, 3) bytes without gaps. tensor: (3, out_height, out_width).
 * row_first, column_first: of each output, its first source row or column; row_weights,
 * column_weights: of each output, as many weights as there are taps. reversed: the frame's channels
 * are in the opposite order of the tensor's. scale and shift: of each plane, value * scale - shift.
 */
extern "C" __global__ void preprocess(
    const unsigned char *frame, float *tensor, const int *row_first, const float *row_weights,
    const int *column_first, const float *column_weights, int row_taps, int column_taps, int width,
    int out_height, int out_width, int reversed, float scale_0, float scale_1, float scale_2,
    float shift_0, float shift_1, float shift_2) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= out_width || y >= out_height) return;

    const float *across = column_weights + (size_t)x * column_taps;
    float sum_0 = 0, sum_1 = 0, sum_2 = 0;
    for (int row = 0; row < row_taps; ++row) {
        const unsigned char *pixel =
            frame + ((size_t)(row_first[y] + row) * width + column_first[x]) * 3;
        float line_0 = 0, line_1 = 0, line_2 = 0;
        for (int column = 0; column < column_taps; ++column, pixel += 3) {
            line_0 += across[column] * pixel[0];
            line_1 += across[column] * pixel[1];
            line_2 += across[column] * pixel[2];
        }
        const float weight = row_weights[(size_t)y * row_taps + row];
        sum_0 += weight * line_0;
        sum_1 += weight * line_1;
        sum_2 += weight * line_2;
    }

    const size_t plane = (size_t)out_height * out_width;
    float *target = tensor + (size_t)y * out_width + x;
    target[0] = (reversed ? sum_2 : sum_0) * scale_0 - shift_0;
    target[plane] = sum_1 * scale_1 - shift_1;
    target[2 * plane] = (reversed ? sum_0 : sum_2) * scale_2 - shift_2;
}
