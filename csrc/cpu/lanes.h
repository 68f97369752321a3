// Vectors of one number a ray. They have the members of OneRay, so that the integrators' formulas
// serve both. Plain compiler vectors: each instruction set takes them apart as it needs.
#pragma once

#include "../rays/hd.h"

namespace drrkit {
namespace cpu {

template <class T, int N> struct VectorOf {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};

template <class S, int N> struct Lanes {
  using Value = typename VectorOf<S, N>::Type;
  using Index = typename VectorOf<int, N>::Type;
  using Bits = typename VectorOf<unsigned, N>::Type;
  using Wide = typename VectorOf<double, N>::Type;
  using Number = S;
  using Mask = decltype(Value{} < Value{});  // lanes are 0 or -1
  static constexpr int kCount = N;

  DRR_HD static Value splat(S x) { return Value{} + x; }
  DRR_HD static Value of(Index i) { return __builtin_convertvector(i, Value); }
  DRR_HD static Index truncated(Value x) { return __builtin_convertvector(x, Index); }
  DRR_HD static Index floored(Value x) {
    const Index i = truncated(x), less = __builtin_convertvector(of(i) > x, Index);
    return reinterpret_cast<Index>(reinterpret_cast<Bits>(i) + reinterpret_cast<Bits>(less));
  }
  // (i - origin) * step, for sums that are offsets in memory. Where a lane does not count i may be
  // any number, and wraps around.
  DRR_HD static Bits steps(Index i, int origin, int step) {
    return (reinterpret_cast<Bits>(i) - static_cast<unsigned>(origin)) *
           static_cast<unsigned>(step);
  }
  DRR_HD static Value pick(Mask first, Value a, Value b) { return first ? a : b; }
  DRR_HD static Index pick(Mask first, Index a, Index b) {
    const Index mask = __builtin_convertvector(first, Index);
    return (mask & a) | (~mask & b);
  }
  DRR_HD static bool all(Mask m) {
    const Index mask = __builtin_convertvector(m, Index);
    int every = -1;
    for (int i = 0; i < N; ++i) every &= mask[i];
    return every != 0;
  }
  DRR_HD static int smallest(Index x) {
    int least = x[0];
    for (int i = 1; i < N; ++i) least = minimum(least, x[i]);
    return least;
  }
  DRR_HD static int largest(Index x) {
    int most = x[0];
    for (int i = 1; i < N; ++i) most = maximum(most, x[i]);
    return most;
  }
};

// Lane offsets as numbers in memory. The barrier keeps the compiler from picking them out of the
// vector one by one, which costs more than the loads they are for.
template <int N, class Index> DRR_HD void spread(Index offsets, int (&at)[N]) {
  __builtin_memcpy(at, &offsets, sizeof offsets);
  asm volatile("" : "+m"(at));
}

// Vectors are put together from quarters: element by element the compiler may make one long chain.
template <class T> using Two = typename VectorOf<T, 2>::Type;
template <class T> using Four = typename VectorOf<T, 4>::Type;
template <class T> using Eight = typename VectorOf<T, 8>::Type;
template <class T> using Sixteen = typename VectorOf<T, 16>::Type;

template <class T> DRR_HD Four<T> join(Two<T> x, Two<T> y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3);
}
template <class T> DRR_HD Eight<T> join(Four<T> x, Four<T> y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7);
}
template <class T> DRR_HD Sixteen<T> join(Eight<T> x, Eight<T> y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// Of the 2 N numbers of x and y the even ones, and the odd ones.
template <int N, class V> DRR_HD V evens(V x, V y) {
  if constexpr (N == 16) {
    return __builtin_shufflevector(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(x, y, 0, 2, 4, 6, 8, 10, 12, 14);
  } else if constexpr (N == 4) {
    return __builtin_shufflevector(x, y, 0, 2, 4, 6);
  } else {
    return __builtin_shufflevector(x, y, 0, 2);
  }
}
template <int N, class V> DRR_HD V odds(V x, V y) {
  if constexpr (N == 16) {
    return __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (N == 4) {
    return __builtin_shufflevector(x, y, 1, 3, 5, 7);
  } else {
    return __builtin_shufflevector(x, y, 1, 3);
  }
}

// x[0] y[0] x[1] y[1] ...: the first N numbers and the last.
template <int N, class V> DRR_HD void zip(V x, V y, V& first, V& last) {
  if constexpr (N == 16) {
    first = __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    last =
        __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (N == 8) {
    first = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
    last = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (N == 4) {
    first = __builtin_shufflevector(x, y, 0, 4, 1, 5);
    last = __builtin_shufflevector(x, y, 2, 6, 3, 7);
  } else {
    first = __builtin_shufflevector(x, y, 0, 2);
    last = __builtin_shufflevector(x, y, 1, 3);
  }
}

template <class S, int N> DRR_HD typename Lanes<S, N>::Value load_each(const S* p, const int* at) {
  if constexpr (N == 2) {
    return Two<S>{p[at[0]], p[at[1]]};
  } else if constexpr (N == 4) {
    return Four<S>{p[at[0]], p[at[1]], p[at[2]], p[at[3]]};
  } else {
    return join<S>(load_each<S, N / 2>(p, at), load_each<S, N / 2>(p, at + N / 2));
  }
}

// Two neighbours in memory for each lane. Loading them together halves the loads, which are what a
// march spends its time on; hardware gathers are slower than scalar loads on many processors.
typedef double FloatPair __attribute__((may_alias, aligned(4)));

template <int N>
DRR_HD typename VectorOf<double, N>::Type load_pair(const float* p, const int* at) {
  if constexpr (N == 2) {
    return Two<double>{*reinterpret_cast<const FloatPair*>(p + at[0]),
                       *reinterpret_cast<const FloatPair*>(p + at[1])};
  } else {
    return join<double>(load_pair<N / 2>(p, at), load_pair<N / 2>(p, at + N / 2));
  }
}

template <int N>
DRR_HD void load_pairs(const float* p, const int* at, typename Lanes<float, N>::Value& low,
                       typename Lanes<float, N>::Value& high) {
  using V = typename Lanes<float, N>::Value;
  const V x = reinterpret_cast<V>(load_pair<N / 2>(p, at));
  const V y = reinterpret_cast<V>(load_pair<N / 2>(p, at + N / 2));
  low = evens<N>(x, y);
  high = odds<N>(x, y);
}

template <int N>
DRR_HD void load_pairs(const double* p, const int* at, typename Lanes<double, N>::Value& low,
                       typename Lanes<double, N>::Value& high) {
  low = load_each<double, N>(p, at);
  high = load_each<double, N>(p + 1, at);
}

// Adds a number of each lane to memory, lane after lane: lanes may meet.
template <class S, int N> DRR_HD void add_each(S* p, const int* at, typename Lanes<S, N>::Value x) {
  alignas(sizeof x) S numbers[N];
  __builtin_memcpy(numbers, &x, sizeof x);
  asm volatile("" : "+m"(numbers));  // see spread
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[at[i]] += numbers[i];
}

// The same for two neighbours in memory, with one addition of two numbers a lane.
template <class S, int N>
DRR_HD void add_pairs(S* p, const int* at, typename Lanes<S, N>::Value low,
                      typename Lanes<S, N>::Value high) {
  using V = typename Lanes<S, N>::Value;
  V pairs[2];
  zip<N>(low, high, pairs[0], pairs[1]);
  alignas(sizeof(V)) S numbers[2 * N];
  __builtin_memcpy(numbers, pairs, sizeof pairs);
  asm volatile("" : "+m"(numbers));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    Two<S> sum, more;
    __builtin_memcpy(&sum, p + at[i], sizeof sum);
    __builtin_memcpy(&more, numbers + 2 * i, sizeof more);
    sum += more;
    __builtin_memcpy(p + at[i], &sum, sizeof sum);
  }
}

}  // namespace cpu
}  // namespace drrkit
