/* The kernel of rfdetr_edge/cuda/preprocess.cu for the CPU, thread by thread. */
#include <cstddef>

struct Size { int x, y, z; };
static Size blockIdx, blockDim, threadIdx;
#define __global__
#include KERNEL

extern "C" void run(
    const int *grid, const int *block, const unsigned char *frame, float *tensor,
    const int *row_first, const float *row_weights, const int *column_first,
    const float *column_weights, int row_taps, int column_taps, int width, int out_height,
    int out_width, int reversed, float scale_0, float scale_1, float scale_2, float shift_0,
    float shift_1, float shift_2) {
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
                    preprocess(
                        frame, tensor, row_first, row_weights, column_first, column_weights,
                        row_taps, column_taps, width, out_height, out_width, reversed, scale_0,
                        scale_1, scale_2, shift_0, shift_1, shift_2);
}
