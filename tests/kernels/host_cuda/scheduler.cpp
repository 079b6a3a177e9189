// Runs a grid block after block. A block's threads are fibres that go on until a barrier or a shuffle, in an order that
// can be chosen: a kernel whose barriers are complete gives the same result in every order.
//
// The address and thread sanitizers are told about the fibres where they are loaded (their functions are weak). Under
// ThreadSanitizer only launches, barriers, shuffles and atomics order the threads, so that it sees races as on a GPU.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

extern "C" {
#define WEAK __attribute__((weak))
WEAK void* __tsan_get_current_fiber(void);
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* address);
WEAK void __tsan_release(void* address);
WEAK void __asan_poison_memory_region(const volatile void* memory, std::size_t bytes);
WEAK void __asan_unpoison_memory_region(const volatile void* memory, std::size_t bytes);
WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host_cuda {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024, kSharedBytes = std::size_t{1} << 28;
constexpr unsigned kWarp = 32;

char* map(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char, void (*)(char*)> stack{map(kStackBytes), [](char* memory) { munmap(memory, kStackBytes); }};
  void* race_detector = nullptr;
};

enum class State { kReady, kAtBarrier, kInExchange, kDone };

struct Thread {
  dim3 index;
  State state = State::kReady;
  std::unique_ptr<Fibre> fibre;
  // Of the exchange that the thread waits in.
  unsigned mask = 0;
  std::uint64_t bits = 0;
  int source = 0;
};

struct Settings {
  int order = 0;  // 0 forward, 1 reverse, 2 random
  unsigned seed = 0;
  int multiprocessors = 2;
} settings;

// The launch, and the block that runs: its threads, the order in which they start, and what they share.
const std::function<void()>* kernel;
std::size_t dynamic_shared_bytes;
std::vector<Thread> threads;
std::vector<unsigned> order;
std::size_t next_to_start;
unsigned current, alive, waiting;
struct SharedVariable {
  const void* key;
  char* memory;
} shared_variables[64];
unsigned num_shared_variables;
char* const shared_arena = map(kSharedBytes);
std::size_t shared_used;  // grows until the launch ends, so that no block sees the memory of another
std::vector<std::unique_ptr<Fibre>> idle_fibres;
ucontext_t scheduler;
const void* scheduler_stack;
std::size_t scheduler_stack_bytes;
void* scheduler_race_detector;
std::string failure;
cudaError_t last_error = cudaSuccess;

// A point where all that happened before the releases is seen after the acquires. Two take turns, or a thread that is
// late in leaving a barrier would see what others did after it.
struct MeetingPoint {
  char objects[2];
  unsigned turn = 0;
  void* object() { return &objects[turn % 2]; }
} block_meeting, warp_meetings[1024 / kWarp];
char begin_of_launch, end_of_launch;

void acquire(void* object) {
  if (__tsan_acquire) __tsan_acquire(object);
}
void release(void* object) {
  if (__tsan_release) __tsan_release(object);
}
void switch_race_detector(void* fibre) {
  constexpr unsigned kNoSynchronisation = 1;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fibre, kNoSynchronisation);
}

void choose(unsigned thread) {
  current = thread;
  threadIdx = threads[thread].index;
}

void enter(Fibre& fibre) {
  void* fake_stack = nullptr;
  switch_race_detector(fibre.race_detector);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack, fibre.stack.get(), kStackBytes);
  swapcontext(&scheduler, &fibre.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// From the current thread's fibre to the scheduler, until the thread is resumed.
void leave() {
  Fibre& fibre = *threads[current].fibre;
  void* fake_stack = nullptr;
  switch_race_detector(scheduler_race_detector);
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&fibre.context, &scheduler);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

[[noreturn]] void fail(const std::string& text) {
  failure = text + " (block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(current) + ")";
  leave();
  std::abort();  // a thread that failed is never resumed
}

void open_full_barrier() {
  if (waiting < alive) return;
  for (Thread& thread : threads)
    if (thread.state == State::kAtBarrier) thread.state = State::kReady;
  waiting = 0;
  ++block_meeting.turn;
}

// Runs one thread after the other: the next one starts here where the last one met no barrier.
void fibre_main() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  while (true) {
    acquire(&begin_of_launch);
    (*kernel)();
    release(&end_of_launch);
    threads[current].state = State::kDone;
    --alive;
    open_full_barrier();
    if (next_to_start < order.size() && !__tsan_create_fiber) {
      unsigned next = order[next_to_start++];
      threads[next].fibre = std::move(threads[current].fibre);
      choose(next);
    } else {
      leave();
    }
  }
}

std::unique_ptr<Fibre> new_fibre() {
  std::unique_ptr<Fibre> fibre;
  if (!idle_fibres.empty()) {
    fibre = std::move(idle_fibres.back());
    idle_fibres.pop_back();
    return fibre;
  }
  fibre = std::make_unique<Fibre>();
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp = fibre->stack.get();
  fibre->context.uc_stack.ss_size = kStackBytes;
  makecontext(&fibre->context, fibre_main, 0);
  if (__tsan_create_fiber) fibre->race_detector = __tsan_create_fiber(0);
  return fibre;
}

void resume(unsigned number) {
  if (!threads[number].fibre) threads[number].fibre = new_fibre();
  choose(number);
  enter(*threads[number].fibre);
  auto& fibre = threads[current].fibre;  // of the thread that left
  // Last in, first out: a fibre runs another thread of the next block, and a race of two blocks is seen.
  if (threads[current].state == State::kDone) idle_fibres.push_back(std::move(fibre));
}

void run_block(std::mt19937& random) {
  unsigned size = blockDim.x * blockDim.y * blockDim.z;
  threads.clear();
  threads.resize(size);
  order.resize(size);
  for (unsigned i = 0; i < size; ++i) {
    threads[i].index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    order[i] = settings.order == 1 ? size - 1 - i : i;
  }
  if (settings.order == 2) std::shuffle(order.begin(), order.end(), random);
  num_shared_variables = 0;
  alive = size, waiting = 0;
  for (next_to_start = 0; next_to_start < size && failure.empty();) resume(order[next_to_start++]);
  while (alive > 0 && failure.empty()) {
    bool stuck = true;
    for (unsigned number : order) {
      if (threads[number].state != State::kReady || !failure.empty()) continue;
      stuck = false;
      resume(number);
    }
    if (stuck) failure = "deadlock: a thread waits for others that do not come";
  }
}

bool fits(const dim3& grid, const dim3& block) {
  std::size_t size = std::size_t{block.x} * block.y * block.z;
  bool block_fits = size > 0 && size <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
  return block_fits && grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
         grid.z <= 65535;
}

}  // namespace

void launch(const Configuration& configuration, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> guard(one_at_a_time);
  if (!fits(configuration.grid, configuration.block)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  gridDim = configuration.grid, blockDim = configuration.block, dynamic_shared_bytes = configuration.shared_bytes;
  kernel = &body;
  shared_used = 0;
  release(&begin_of_launch);
  if (__tsan_get_current_fiber) scheduler_race_detector = __tsan_get_current_fiber();
  std::mt19937 random(settings.seed);
  std::size_t blocks = std::size_t{gridDim.x} * gridDim.y * gridDim.z;
  for (std::size_t i = 0; i < blocks && failure.empty(); ++i) {
    std::size_t block = settings.order == 1 ? blocks - 1 - i : i;
    blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y);
    run_block(random);
  }
  acquire(&end_of_launch);
  if (!failure.empty()) throw std::runtime_error("host_cuda: " + std::exchange(failure, {}));
}

void* shared_memory(const void* key, std::size_t bytes) {
  for (unsigned i = 0; i < num_shared_variables; ++i)
    if (shared_variables[i].key == key) return shared_variables[i].memory;
  constexpr std::size_t kGap = 64;
  bytes = bytes ? bytes : dynamic_shared_bytes;
  std::size_t next = (shared_used + bytes + 2 * kGap - 1) / kGap * kGap;
  if (next > kSharedBytes || num_shared_variables == 64) fail("the launch uses more shared memory than the emulation has");
  char* memory = shared_arena + shared_used;
  if (__asan_poison_memory_region) __asan_poison_memory_region(memory, next - shared_used);
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(memory, bytes);
  // NaN, so that what nobody wrote is seen. By a loop: ThreadSanitizer would take note of a memset.
  for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(memory)[i] = -1;
  shared_used = next;
  shared_variables[num_shared_variables++] = {key, memory};
  return memory;
}

void block_barrier() {
  void* meeting = block_meeting.object();
  release(meeting);
  threads[current].state = State::kAtBarrier;
  ++waiting;
  open_full_barrier();
  leave();
  acquire(meeting);
}

int lane() { return static_cast<int>(current % kWarp); }

std::uint64_t exchange(unsigned mask, std::uint64_t bits, int source) {
  unsigned warp = current / kWarp * kWarp, thread = current;
  Thread& self = threads[thread];
  self.mask = mask, self.bits = bits, self.source = source;
  self.state = State::kInExchange;
  if (!(mask >> lane() & 1u)) fail("a warp operation of a lane that is not in its mask");
  if (!(mask >> source & 1u)) fail("a shuffle from a lane that is not in the mask");
  bool complete = true;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1u)) continue;
    if (warp + i >= threads.size() || threads[warp + i].state == State::kDone)
      fail("a warp operation waits for a lane that does not exist or has exited");
    if (threads[warp + i].state != State::kInExchange) complete = false;
    else if (threads[warp + i].mask != mask) fail("lanes of a warp operation name different masks");
  }
  if (complete) {  // the last one deals out everybody's value before anybody goes on to the next operation
    std::uint64_t values[kWarp] = {};
    for (unsigned i = 0; i < kWarp; ++i)
      if (mask >> i & 1u) values[i] = threads[warp + threads[warp + i].source].bits;
    for (unsigned i = 0; i < kWarp; ++i)
      if (mask >> i & 1u) threads[warp + i].bits = values[i], threads[warp + i].state = State::kReady;
    ++warp_meetings[warp / kWarp].turn;
  }
  leave();
  return threads[thread].bits;
}

// Unlike a shuffle it also orders memory.
void warp_barrier(unsigned mask) {
  void* meeting = warp_meetings[current / kWarp].object();
  release(meeting);
  exchange(mask, 0, lane());
  acquire(meeting);
}

void require_block_of_at_most(unsigned size) {
  if (threads.size() > size) fail("the block of " + std::to_string(threads.size()) + " exceeds __launch_bounds__");
}

void begin_atomic(const void* address) { acquire(const_cast<void*>(address)); }
void end_atomic(const void* address) { release(const_cast<void*>(address)); }

}  // namespace host_cuda

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = host_cuda::settings.multiprocessors, cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(host_cuda::last_error, cudaSuccess); }
cudaError_t cudaMemsetAsync(void* target, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(target, value, bytes), cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "error";
}

extern "C" __attribute__((visibility("default"))) void host_cuda_configure(int order, unsigned seed, int multiprocessors) {
  host_cuda::settings = {order, seed, multiprocessors};
}
