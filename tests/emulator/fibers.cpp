// Fibers, and the scheduler that runs one block at a time.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
#include <link.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 * 1024;

// A stack that begins with a page which nobody may touch: an overflow must not go unnoticed.
class Stack {
 public:
  Stack() {
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    start_ = mmap(nullptr, kStackBytes + page_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start_ == MAP_FAILED || mprotect(start_, page_, PROT_NONE) != 0) {
      std::perror("a fiber's stack");
      std::abort();
    }
  }
  ~Stack() { munmap(start_, kStackBytes + page_); }
  Stack(const Stack&) = delete;
  void* bottom() const { return static_cast<char*>(start_) + page_; }

 private:
  void* start_;
  size_t page_;
};

#if defined(__SANITIZE_ADDRESS__)
#define EMULATED_UNCHECKED __attribute__((noinline, no_sanitize("address")))
#else
#define EMULATED_UNCHECKED __attribute__((noinline))
#endif

// Where a flow of control stands. ucontext makes a fiber; afterwards jumps switch, which cost no
// system call as swapcontext does. They are the compiler's own, as the library's longjmp believes
// that it unwinds a stack, and the address sanitizer with it.
struct Place {
  void* at[5];
  void* fake_stack = nullptr;  // the address sanitizer's, as the two below
  const void* bottom = nullptr;
  size_t bytes = 0;
};

EMULATED_UNCHECKED void jump(Place& to) { __builtin_longjmp(to.at, 1); }
EMULATED_UNCHECKED void leave_for(Place& from, Place& to) {
  if (__builtin_setjmp(from.at) == 0) jump(to);
}
EMULATED_UNCHECKED void leave_for(Place& from, ucontext_t& to) {
  if (__builtin_setjmp(from.at) == 0) setcontext(&to);
}

void before_leaving(Place& from, const Place& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#else
  (void)from, (void)to;
#endif
}
// `from` learns which stack was left, where that is not known yet.
void on_arrival(Place& at, Place& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(at.fake_stack, &from.bottom, &from.bytes);
#else
  (void)at, (void)from;
#endif
}

enum class State { kReady, kWaiting, kEnded };

struct Fiber {
  Stack stack;
  Place place;
  bool made = false;
  State state = State::kEnded;
  uint3 thread;
  Exchange* exchange = nullptr;
};

struct Scheduler {
  std::vector<std::unique_ptr<Fiber>> fibers;  // made once, used by block after block
  Place home;
  Fiber* running = nullptr;
  int running_index = 0;
  int threads = 0;
  const std::function<void()>* body = nullptr;
  std::string trouble;
};

Scheduler scheduler;
std::mutex one_launch;
Options chosen;

// Hands control back to the scheduler until it resumes this fiber.
void pause(Fiber& self) {
  before_leaving(self.place, scheduler.home);
  leave_for(self.place, scheduler.home);
  on_arrival(self.place, scheduler.home);
}

void fiber_main() {
  Fiber& self = *scheduler.running;
  on_arrival(self.place, scheduler.home);
  for (;;) {
    (*scheduler.body)();
    self.state = State::kEnded;
    pause(self);
  }
}

// Runs a fiber until it waits or ends.
void resume(int index) {
  Fiber& fiber = *scheduler.fibers[index];
  scheduler.running = &fiber;
  scheduler.running_index = index;
  threadIdx = fiber.thread;
  fiber.place.bottom = fiber.stack.bottom();
  fiber.place.bytes = kStackBytes;
  before_leaving(scheduler.home, fiber.place);
  if (fiber.made) {
    leave_for(scheduler.home, fiber.place);
  } else {
    fiber.made = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.bottom();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    leave_for(scheduler.home, context);
  }
  Place fibers_own;
  on_arrival(scheduler.home, fibers_own);
  scheduler.running = nullptr;
}

std::string position(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

const char* name(Collective what) {
  switch (what) {
    case Collective::kSyncThreads: return "__syncthreads";
    case Collective::kSyncWarp: return "__syncwarp";
    case Collective::kShuffle: return "a shuffle";
    default: return "a vote";
  }
}

std::string describe(int index) {
  const Fiber& fiber = *scheduler.fibers[index];
  const std::string who = "thread " + std::to_string(index);
  if (fiber.state == State::kEnded) return who + " has ended";
  char mask[16];
  std::snprintf(mask, sizeof mask, "%08x", fiber.exchange->mask);
  const bool block = fiber.exchange->what == Collective::kSyncThreads;
  return who + " waits in " + name(fiber.exchange->what) + " at " +
         position(fiber.exchange->where) + (block ? "" : std::string(" under mask ") + mask);
}

bool report(const std::string& text) {
  if (scheduler.trouble.empty())
    scheduler.trouble = text + " (block " + std::to_string(blockIdx.x) + ", " +
                        std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
  return false;
}

bool waits_in_warp(const Fiber& fiber) {
  return fiber.state == State::kWaiting && fiber.exchange->what != Collective::kSyncThreads;
}

// Whether all lanes that the mask of `lane` names have come; those beyond the block, or whose
// thread has ended, need not.
bool warp_is_complete(int first, int lane) {
  const unsigned mask = scheduler.fibers[first + lane]->exchange->mask;
  for (int other = 0; other < warpSize && first + other < scheduler.threads; ++other) {
    const Fiber& fiber = *scheduler.fibers[first + other];
    if (!(mask >> other & 1) || fiber.state == State::kEnded) continue;
    if (!waits_in_warp(fiber) || fiber.exchange->mask != mask) return false;
  }
  return true;
}

// Carries out the collective that `lane` waits in: reads every lane's word before any lane goes on.
bool finish_warp(int first, int lane) {
  auto at = [&](int other) -> Fiber& { return *scheduler.fibers[first + other]; };
  const Exchange& model = *at(lane).exchange;
  const unsigned mask = model.mask;
  uint64_t votes = 0;
  std::vector<int> lanes;
  for (int other = 0; other < warpSize && first + other < scheduler.threads; ++other) {
    if (!(mask >> other & 1) || at(other).state == State::kEnded) continue;
    const Exchange& e = *at(other).exchange;
    const bool same_line = e.where.line() == model.where.line();
    if (e.what != model.what || (e.what != Collective::kSyncWarp && !same_line))
      return report("lanes of one mask do different things: " + describe(first + lane) + ", " +
                    describe(first + other));
    lanes.push_back(other);
    votes |= e.word << other;
  }
  for (int other : lanes) {
    Exchange& e = *at(other).exchange;
    if (e.what == Collective::kVote) e.result = votes;
    if (e.what != Collective::kShuffle) continue;
    if (std::find(lanes.begin(), lanes.end(), e.source) == lanes.end())
      return report(describe(first + other) + " and reads lane " + std::to_string(e.source) +
                    ", which is not there");
    e.result = at(e.source).exchange->word;
  }
  for (int other : lanes) at(other).state = State::kReady;
  return true;
}

// Lets go the block's threads once all that have not ended wait in one barrier.
bool finish_block(bool& released) {
  const Exchange* model = nullptr;
  uint64_t count = 0;
  int first = 0;
  for (int i = 0; i < scheduler.threads; ++i) {
    const Fiber& fiber = *scheduler.fibers[i];
    if (fiber.state == State::kEnded) continue;
    if (fiber.state == State::kReady || waits_in_warp(fiber)) return true;
    if (!model) model = fiber.exchange, first = i;
    if (fiber.exchange->where.line() != model->where.line())
      return report("threads of a block wait in different barriers: " + describe(first) + ", " +
                    describe(i));
    count += fiber.exchange->word;
  }
  for (int i = 0; i < scheduler.threads; ++i) {
    Fiber& fiber = *scheduler.fibers[i];
    if (fiber.state != State::kWaiting) continue;
    fiber.exchange->result = count;
    fiber.state = State::kReady;
    released = true;
  }
  return true;
}

// Lets go whoever can go on. False where a collective is used as CUDA does not define it.
bool release(bool& released) {
  for (int first = 0; first < scheduler.threads; first += warpSize)
    for (int lane = 0; lane < warpSize && first + lane < scheduler.threads; ++lane) {
      if (!waits_in_warp(*scheduler.fibers[first + lane])) continue;
      if (!warp_is_complete(first, lane)) continue;
      if (!finish_warp(first, lane)) return false;
      released = true;
    }
  return finish_block(released);
}

bool run_block(const std::vector<int>& order) {
  for (int i = 0; i < scheduler.threads; ++i) scheduler.fibers[i]->state = State::kReady;
  for (;;) {
    bool ended = true, released = false;
    for (int i : order) {
      Fiber& fiber = *scheduler.fibers[i];
      if (fiber.state == State::kReady) resume(i);
      if (!scheduler.trouble.empty()) return false;
      ended = ended && fiber.state == State::kEnded;
    }
    if (ended) return true;
    if (!release(released)) return false;
    if (released) continue;
    for (int i = 0; i < scheduler.threads; ++i)
      if (scheduler.fibers[i]->state == State::kWaiting)
        return report("deadlock: " + describe(i) + " and what it waits for never comes");
  }
}

// While it lives, a thread that touches memory which is not there ends the launch, not the process.
// The address sanitizer sees more, and sees it first.
class FaultGuard {
 public:
  FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    static char room[64 * 1024];  // the thread's own stack may be what is exhausted
    stack_t stack = {room, 0, sizeof room};
    sigaltstack(&stack, &stack_before_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &before_[i]);
#endif
  }
  ~FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
#endif
  }
  FaultGuard(const FaultGuard&) = delete;

 private:
  static constexpr int kSignals[2] = {SIGSEGV, SIGBUS};
  struct sigaction before_[2];
  stack_t stack_before_;

  static void on_fault(int, siginfo_t* info, void*) {
    if (!scheduler.running) std::abort();  // a mistake of the emulator's own
    char where[64];
    std::snprintf(where, sizeof where, " touches memory that is not there: %p", info->si_addr);
    report("thread " + std::to_string(scheduler.running_index) + where);
    jump(scheduler.home);
  }
};

// A kernel's shared memory is among this library's thread-local data.
struct Memory {
  char* start = nullptr;
  size_t bytes = 0;
};

Memory shared_memory() {
  Memory found;
#if !defined(__SANITIZE_ADDRESS__)
  static thread_local char here;  // makes sure that the data exist
  here = 1;
  auto look = [](dl_phdr_info* info, size_t, void* result) {
    Memory& memory = *static_cast<Memory*>(result);
    char* start = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; start && i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const bool inside = &here >= start && &here < start + segment.p_memsz;
      if (segment.p_type == PT_TLS && inside) memory = {start, segment.p_memsz};
    }
    return memory.start ? 1 : 0;
  };
  dl_iterate_phdr(look, &found);
#endif
  return found;
}

bool fits(const cudaLaunchConfig_t& c) {
  const uint64_t threads = uint64_t(c.blockDim.x) * c.blockDim.y * c.blockDim.z;
  const bool some = threads > 0 && c.gridDim.x > 0 && c.gridDim.y > 0 && c.gridDim.z > 0;
  return some && threads <= kMaxThreads && c.blockDim.z <= 64 && c.gridDim.x <= 0x7fffffffu &&
         c.gridDim.y <= 65535 && c.gridDim.z <= 65535 && c.dynamicSmemBytes == 0;
}

void prepare(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  scheduler.threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  scheduler.body = &thread;
  scheduler.trouble.clear();
  while (static_cast<int>(scheduler.fibers.size()) < scheduler.threads)
    scheduler.fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < scheduler.threads; ++i) {
    const unsigned row = i / blockDim.x;
    scheduler.fibers[i]->thread = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
  }
}

}  // namespace

Options& options() { return chosen; }

Counts& counts() {
  static Counts made;
  return made;
}

std::nullptr_t stop(const char* description) {
  report("thread " + std::to_string(scheduler.running_index) + ": " + description);
  return nullptr;
}

int lane_id() { return scheduler.running_index % warpSize; }

void exchange(Exchange& mine) {
  Fiber* self = scheduler.running;
  const bool warp = mine.what != Collective::kSyncThreads;
  self->exchange = &mine;
  self->state = State::kWaiting;
  if (warp && !(mine.mask >> lane_id() & 1))
    report(describe(scheduler.running_index) + ", which does not name its own lane");
  pause(*self);
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (!fits(config)) return fail(cudaErrorInvalidConfiguration);
  prepare(config, thread);
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  counts().launches += 1;
  counts().blocks += blocks;
  std::vector<uint64_t> block_order(blocks);
  std::vector<int> thread_order(scheduler.threads);
  std::iota(block_order.begin(), block_order.end(), 0);
  std::iota(thread_order.begin(), thread_order.end(), 0);
  std::mt19937_64 random(chosen.seed);
  const Memory shared = shared_memory();
  const FaultGuard guard;
  if (chosen.seed) std::shuffle(block_order.begin(), block_order.end(), random);
  if (chosen.backwards) {
    std::reverse(block_order.begin(), block_order.end());
    std::reverse(thread_order.begin(), thread_order.end());
  }
  for (uint64_t block : block_order) {
    if (chosen.seed) std::shuffle(thread_order.begin(), thread_order.end(), random);
    const uint64_t row = block / gridDim.x;
    blockIdx = {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(row % gridDim.y),
                static_cast<unsigned>(row / gridDim.y)};
    if (shared.bytes) std::memset(shared.start, 0xff, shared.bytes);  // NaN in floating types
    if (run_block(thread_order)) continue;
    scheduler.fibers.clear();  // those that still wait never go on
    return fail(cudaErrorLaunchFailure, scheduler.trouble.c_str());
  }
  return cudaSuccess;
}

}  // namespace emulated
