// Capture, as far as the lifetime of what a graph keeps goes: launches are carried out at once and
// not recorded. `emulated_capture` of capture.cpp begins and ends one.
#pragma once

#include "errors.h"

#define CUDART_VERSION 13000  // whose signatures are given here

namespace emulated {
struct Graph;
struct UserObject;
}  // namespace emulated
typedef emulated::Graph* cudaGraph_t;
typedef emulated::UserObject* cudaUserObject_t;
typedef struct CUgraphNode_st* cudaGraphNode_t;
struct cudaGraphEdgeData;
typedef void (*cudaHostFn_t)(void*);

enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};

constexpr unsigned cudaUserObjectNoDestructorSync = 1, cudaGraphUserObjectMove = 1;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count);
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy,
                                 unsigned references, unsigned flags);
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned references = 1);
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object,
                                      unsigned references = 1, unsigned flags = 0);

namespace emulated {

// Whether a call that allocates or frees would spoil the capture that goes on.
bool capture_forbids();
bool capturing();
void spoil_capture();

}  // namespace emulated
