// Errors, the one device, its streams and events.
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include "emulation.h"

namespace {

cudaError_t last_error = cudaSuccess;

std::string& launch_failure() {
  static std::string text;
  return text;
}

}  // namespace

namespace emulated {

cudaError_t fail(cudaError_t error, const char* description) {
  last_error = error;
  if (description) launch_failure() = description;
  return error;
}

}  // namespace emulated

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidTexture: return "cudaErrorInvalidTexture";
    case cudaErrorInvalidChannelDescriptor: return "cudaErrorInvalidChannelDescriptor";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  const bool described = error == cudaErrorLaunchFailure && !launch_failure().empty();
  return described ? launch_failure().c_str() : cudaGetErrorName(error);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : emulated::fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return emulated::fail(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = emulated::options().multiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: return emulated::fail(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

// Streams that cudaStreamCreate made put their work off until it is waited for, so that what is not
// ordered comes in the wrong order; the default stream's is done when the call returns, as is
// whatever a capture sees.
struct CUstream_st {
  std::deque<std::function<cudaError_t()>> work;
  uint64_t done = 0, begun = 0;  // how many pieces of work have been done, and put off
};
struct CUevent_st {
  cudaStream_t stream = nullptr;
  uint64_t place = 0;  // the work that was put off before it
};

namespace {

std::recursive_mutex one_at_a_time;

std::set<cudaStream_t>& streams() {
  static std::set<cudaStream_t> made;
  return made;
}

// Does the work of a stream up to a place in it.
cudaError_t catch_up(cudaStream_t stream, uint64_t place) {
  const std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
  cudaError_t error = cudaSuccess;
  while (stream && streams().count(stream) && stream->done < place) {
    const auto task = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    const cudaError_t found = task();
    if (error == cudaSuccess) error = found;
  }
  return error;
}

}  // namespace

namespace emulated {

cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> task) {
  if (!stream || capturing()) return task();
  const std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
  stream->work.push_back(std::move(task));
  ++stream->begun;
  return cudaSuccess;
}

}  // namespace emulated

cudaError_t cudaDeviceSynchronize() {
  if (emulated::capturing()) {  // in whatever mode the thread is
    emulated::spoil_capture();
    return emulated::fail(cudaErrorStreamCaptureUnsupported);
  }
  cudaError_t error = cudaSuccess;
  for (cudaStream_t stream : std::set<cudaStream_t>(streams()))
    if (const cudaError_t found = catch_up(stream, stream->begun)) error = found;
  return error;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  streams().insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t error = cudaStreamSynchronize(stream);
  streams().erase(stream);  // but not freed: events name it, and a new one may not take its place
  return error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream ? catch_up(stream, stream->begun) : cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, stream ? stream->begun : 0};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return catch_up(event->stream, event->place);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const CUevent_st now = *event;
  return emulated::enqueue(stream, [now] { return catch_up(now.stream, now.place); });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

extern "C" {

cudaStream_t emulated_stream_new() {
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  return stream;
}
int emulated_device_synchronize() { return cudaDeviceSynchronize(); }
int emulated_stream_synchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
void emulated_stream_delete(cudaStream_t stream) { cudaStreamDestroy(stream); }
}
