/*
 * Bridge of libnpumm_onnx.so: operators of ONNX Runtime that somebody else computes, such as a Python program.
 *
 * ONNX Runtime loads the library by SessionOptions.register_custom_ops_library. Each operator has an attribute "number",
 * which says what it computes; whoever called npumm_onnx_set_compute is asked to do it.
 */
#ifndef NPUMATMUL_ONNX_H
#define NPUMATMUL_ONNX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor in the host's memory. `type` is ONNX's number of an element type; 0: there is none, it was left out. */
typedef struct {
  int32_t type;
  int32_t rank;
  const int64_t *dims;
  void *data;
} npumm_onnx_tensor;

/*
 * Computes one node. `call` is for npumm_onnx_output, during this call only. Returns NPUMM_ONNX_DONE, or something else
 * after it has written why, as text that ends with 0, into `message`, which has `room` bytes. That it was done is said
 * by a number that does not come about when a callback of another language fails on its way.
 */
enum { NPUMM_ONNX_DONE = 0x6e70 };

typedef int (*npumm_onnx_compute)(int64_t number, size_t inputs, const npumm_onnx_tensor *input, size_t outputs,
                                  void *call, char *message, size_t room);

/* Who computes from now on; NULL: nobody, and nodes fail. Not to be called while a session runs. */
void npumm_onnx_set_compute(npumm_onnx_compute compute);

/* Makes an output of a shape, and finds its memory; 0, 1 if the model leaves it out, or -1 if it cannot be made. */
int npumm_onnx_output(void *call, size_t index, const int64_t *dims, size_t rank, void **data);

#ifdef __cplusplus
}
#endif

#endif
