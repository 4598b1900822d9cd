// The GPU of csrc/cuda/device.cuh on the host: every thread of a block, or of a cluster of blocks,
// is a fibre. They run in turn until each waits for others, so a barrier that not all threads reach
// is an error and not a hang.
//
// What is checked beyond the results:
// - shared memory holds NaN when a block starts;
// - an asynchronous copy happens when it is waited for, not before;
// - under ThreadSanitizer fibres are threads whose only order is that of block_sync and
//   cluster_sync, so that a missing barrier is a data race. RGA_DROP_BARRIERS=1 takes that order
//   away: then the sanitizer must complain.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define RGA_TSAN 1
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#else
#define RGA_TSAN 0
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

#define RGA_DEVICE inline
#define RGA_KERNEL(threads) void
#define RGA_PARAMETER

namespace rga::cuda {

using half = c10::Half;
using bfloat16 = c10::BFloat16;
using Stream = void*;

namespace emulate {

// The emulation itself is none of the sanitizer's business.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Barrier {
  int members = 0, arrived = 0;
  unsigned generation = 0;
  char order = 0;  // what the sanitizer sees
};

struct Warp {
  Barrier barrier;
  const void* slots[2][32];
  unsigned uses[32];
};

struct Block {
  unsigned index, rank;
  std::vector<unsigned char> shared;
  std::vector<Warp> warps;
  Barrier barrier;
};

struct Fibre {
  ucontext_t context;
  jmp_buf point;
  bool started = false, done = true;
  unsigned thread = 0;
  Block* block = nullptr;
  const Barrier* waits = nullptr;
  unsigned generation = 0;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  void* sanitizer = nullptr;
};

struct Machine {
  std::mutex mutex;
  std::vector<Fibre*> fibres;
  std::vector<Block> blocks;  // of the running cluster
  Barrier cluster;
  Fibre* current = nullptr;
  std::function<void()> body;
  ucontext_t context;
  jmp_buf point;
  void* sanitizer = nullptr;
  int64_t launches = 0;
  const bool ordered = std::getenv("RGA_DROP_BARRIERS") == nullptr;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

constexpr size_t kStack = 128 * 1024;

// Out of the running fibre, back to the loop over all of them.
inline void leave() {
  const Unseen unseen;
  Machine& m = machine();
  Fibre* self = m.current;
  __tsan_switch_to_fiber(m.sanitizer, 1);
  if (RGA_TSAN) {
    swapcontext(&self->context, &m.context);
  } else if (!_setjmp(self->point)) {
    _longjmp(m.point, 1);
  }
}

inline void fibre_main() {
  for (;;) {
    Machine& m = machine();
    __tsan_acquire(&m);
    m.body();
    __tsan_release(&m);
    const Unseen unseen;
    m.current->done = true;
    leave();
  }
}

inline void enter(Fibre* fibre) {
  Machine& m = machine();
  m.current = fibre;
  __tsan_switch_to_fiber(fibre->sanitizer, 1);
  if (RGA_TSAN) {
    swapcontext(&m.context, &fibre->context);
  } else if (!_setjmp(m.point)) {
    if (fibre->started) _longjmp(fibre->point, 1);
    fibre->started = true;
    setcontext(&fibre->context);
  }
}

inline void wait(Barrier& barrier) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Fibre* self = machine().current;
  self->waits = &barrier, self->generation = generation;
  leave();
}

// A barrier that orders memory.
inline void wait_in_order(Barrier& barrier) {
  const Unseen unseen;
  const bool ordered = machine().ordered;
  if (ordered) __tsan_release(&barrier.order);
  wait(barrier);
  if (ordered) __tsan_acquire(&barrier.order);
}

inline Fibre* new_fibre() {
  auto* fibre = new Fibre;
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  fibre->context.uc_stack.ss_size = kStack;
  makecontext(&fibre->context, fibre_main, 0);
  fibre->sanitizer = __tsan_create_fiber(0);
  return fibre;
}

inline void run_cluster(unsigned first, int cluster, int threads, size_t shared) {
  const Unseen unseen;
  Machine& m = machine();
  m.blocks.resize(cluster);
  while (m.fibres.size() < static_cast<size_t>(cluster) * threads) m.fibres.push_back(new_fibre());
  m.cluster = {cluster * threads};
  std::vector<Fibre*> active;
  for (int i = 0; i < cluster; ++i) {
    Block& block = m.blocks[i];
    block.index = first + i, block.rank = i;
    block.shared.assign(shared + 16, 0xff);
    block.barrier = {threads};
    block.warps.assign((threads + 31) / 32, {});
    for (Warp& warp : block.warps) warp.barrier.members = 32;
    for (int t = 0; t < threads; ++t) {
      Fibre* fibre = m.fibres[i * threads + t];
      fibre->block = &block, fibre->thread = t, fibre->done = false, fibre->waits = nullptr;
      active.push_back(fibre);
    }
  }
  m.sanitizer = __tsan_get_current_fiber();
  __tsan_release(&m);
  for (size_t left = active.size(); left > 0;) {
    bool moved = false;
    for (Fibre* fibre : active) {
      if (fibre->done || (fibre->waits && fibre->waits->generation == fibre->generation)) continue;
      fibre->waits = nullptr;
      enter(fibre);
      moved = true;
      if (fibre->done) --left;
    }
    if (!moved) {
      std::fprintf(stderr, "emulated GPU: a barrier was not reached by all threads\n");
      std::abort();
    }
  }
  __tsan_acquire(&m);
}

// f(values of all 32 lanes) after every lane of the warp has given its value.
template <class T, class F>
auto together(const T& value, const F& f) {
  const Unseen unseen;
  Fibre* self = machine().current;
  const unsigned lane = self->thread % 32;
  Warp& warp = self->block->warps[self->thread / 32];
  const void** slots = warp.slots[warp.uses[lane]++ % 2];
  slots[lane] = &value;
  wait(warp.barrier);
  const auto result = f(reinterpret_cast<const T* const*>(slots), lane);
  wait(warp.barrier);  // the values live on the stacks of the lanes
  return result;
}

inline uint16_t half_word(const void* row, int column) {
  uint16_t word;
  std::memcpy(&word, static_cast<const char*>(row) + 2 * column, 2);
  return word;
}

template <class S>
float element(uint32_t pair, int which) {
  const auto word = static_cast<uint16_t>(pair >> (16 * which));
  S value;
  std::memcpy(&value, &word, 2);
  return static_cast<float>(value);
}

}  // namespace emulate

inline unsigned thread_index() {
  const emulate::Unseen unseen;
  return emulate::machine().current->thread;
}
inline unsigned block_index() {
  const emulate::Unseen unseen;
  return emulate::machine().current->block->index;
}
inline void block_sync() {
  const emulate::Unseen unseen;
  emulate::wait_in_order(emulate::machine().current->block->barrier);
}

template <class T>
T shuffle_xor(T value, int lanes) {
  return emulate::together(
      value, [lanes](const T* const* all, unsigned lane) { return *all[lane ^ lanes]; });
}

template <class T>
T* shared_memory() {
  const emulate::Unseen unseen;
  const auto start = reinterpret_cast<uintptr_t>(emulate::machine().current->block->shared.data());
  return reinterpret_cast<T*>((start + 15) / 16 * 16);
}

template <bool kTransposed>
void load_matrices(uint32_t (&x)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    std::fprintf(stderr, "emulated GPU: ldmatrix from an address not aligned to 16 bytes\n");
    std::abort();
  }
  for (int i = 0; RGA_TSAN && i < 8; ++i)  // the sanitizer sees the lane read its row
    static_cast<void>(static_cast<const volatile uint16_t*>(row)[i]);
  struct Words {
    uint32_t x[4];
  };
  const Words words = emulate::together(row, [](const void* const* const* all, unsigned lane) {
    Words result;
    for (int i = 0; i < 4; ++i) {
      const int r = lane / 4, c = 2 * (lane % 4);
      uint32_t low, high;
      if (kTransposed) {
        low = emulate::half_word(*all[8 * i + c], r);
        high = emulate::half_word(*all[8 * i + c + 1], r);
      } else {
        low = emulate::half_word(*all[8 * i + r], c);
        high = emulate::half_word(*all[8 * i + r], c + 1);
      }
      result.x[i] = low | high << 16;
    }
    return result;
  });
  std::memcpy(x, words.x, sizeof words.x);
}

template <class S>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  struct Pieces {
    const uint32_t *a, *b;
  };
  struct Sums {
    float x[4];
  };
  const Sums sums = emulate::together(Pieces{a, b}, [](const Pieces* const* all, unsigned lane) {
    Sums result = {};
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) {
        const int pair = k % 8 / 2;
        const uint32_t left = all[row % 8 * 4 + pair]->a[row / 8 + 2 * (k / 8)];
        const uint32_t right = all[column * 4 + pair]->b[k / 8];
        result.x[i] += emulate::element<S>(left, k % 2) * emulate::element<S>(right, k % 2);
      }
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) c[i] += sums.x[i];
}

inline void copy_async(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    std::fprintf(stderr, "emulated GPU: cp.async with an address not aligned to 16 bytes\n");
    std::abort();
  }
  emulate::machine().current->open.push_back({shared, global, bytes});
}
inline void copy_commit() {
  emulate::Fibre* self = emulate::machine().current;
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}
template <int kPending>
void copy_wait() {
  auto& groups = emulate::machine().current->groups;
  while (groups.size() > kPending) {
    for (const emulate::Copy& copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, 16 - copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

inline void cluster_sync() {
  const emulate::Unseen unseen;
  emulate::wait_in_order(emulate::machine().cluster);
}
template <class T>
T* cluster_shared(T* shared, unsigned rank) {
  const emulate::Unseen unseen;
  emulate::Machine& m = emulate::machine();
  const auto start = [](emulate::Block& block) {
    return (reinterpret_cast<uintptr_t>(block.shared.data()) + 15) / 16 * 16;
  };
  const auto offset = reinterpret_cast<uintptr_t>(shared) - start(*m.current->block);
  return reinterpret_cast<T*>(start(m.blocks[rank]) + offset);
}
inline bool has_clusters() { return true; }

inline void copy16(void* to, const void* from) { std::memcpy(to, from, 16); }

template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared, Stream, int cluster,
            const A&... arguments) {
  emulate::Machine& m = emulate::machine();
  const std::lock_guard lock(m.mutex);
  if (blocks > 0) ++m.launches;
  m.body = [&] { kernel(static_cast<P>(arguments)...); };
  for (int64_t first = 0; first < blocks; first += cluster)
    emulate::run_cluster(static_cast<unsigned>(first), cluster, threads, shared);
}

}  // namespace rga::cuda

// How many kernels have been launched so far.
extern "C" __attribute__((visibility("default"), used)) inline int64_t emulated_launches() {
  return rga::cuda::emulate::machine().launches;
}
