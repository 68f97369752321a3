// Graphs that keep objects alive while they exist.
#include <cuda_runtime.h>

#include <vector>

namespace emulated {

struct UserObject {
  void* pointer;
  cudaHostFn_t destroy;
  unsigned references;
};

struct Graph {
  std::vector<UserObject*> kept;
  bool spoiled = false;  // by a call that waits for the whole device
};

namespace {

Graph* captured = nullptr;  // the graph of the capture that goes on
cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

}  // namespace

bool capturing() { return captured != nullptr; }
void spoil_capture() { captured->spoiled = true; }
bool capture_forbids() { return captured && mode_of_thread != cudaStreamCaptureModeRelaxed; }

}  // namespace emulated

using emulated::captured;
using emulated::Graph;
using emulated::UserObject;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, emulated::mode_of_thread);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  if (id || dependencies || edges || count) return emulated::fail(cudaErrorNotSupported);
  if (graph) *graph = captured;
  return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy,
                                 unsigned references, unsigned flags) {
  if (!destroy || references == 0 || flags != cudaUserObjectNoDestructorSync)
    return emulated::fail(cudaErrorInvalidValue);
  *object = new UserObject{pointer, destroy, references};
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned references) {
  if (!object || references > object->references) return emulated::fail(cudaErrorInvalidValue);
  object->references -= references;
  if (object->references > 0) return cudaSuccess;
  object->destroy(object->pointer);
  delete object;
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object,
                                      unsigned references, unsigned flags) {
  if (!graph || !object || references == 0) return emulated::fail(cudaErrorInvalidValue);
  if (flags != cudaGraphUserObjectMove) object->references += references;
  for (unsigned i = 0; i < references; ++i) graph->kept.push_back(object);
  return cudaSuccess;
}

extern "C" {

// Begins a capture, or ends the one that goes on and returns its graph, null where it is spoiled.
void emulated_capture_begin() { captured = new Graph; }
Graph* emulated_capture_end() {
  Graph* graph = std::exchange(captured, nullptr);
  if (!graph->spoiled) return graph;
  for (UserObject* object : graph->kept) cudaUserObjectRelease(object, 1);
  delete graph;
  return nullptr;
}

void emulated_graph_destroy(Graph* graph) {
  for (UserObject* object : graph->kept) cudaUserObjectRelease(object, 1);
  delete graph;
}
}
