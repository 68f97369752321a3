// P* of Joseph's method by gathering: every ray of a plane is looked at once.
//
// Samples lie in cells of four voxels. A patch is 2 x 2 cells of one plane: those around one voxel
// that it owns and its three upper neighbours, which it owns too; its lower neighbours belong to
// other patches, and what falls to them is handed over at the end (cuda/patches.cuh). Patches share
// no sample, so with p pixels a voxel face one looks at 4 p of them, where gathering for the same
// four voxels alone would look at 9 p. What is fetched is one number a pixel: the ray is computed,
// the same in every patch to the bit, so that exactly one of them finds it inside.
#pragma once

#include "cube.h"

namespace drrkit {

// What a sample at x weighs in voxels at - 1, at and at + 1; x in [at - 1, at + 1), or, in the
// patch at the grid's upper edge, in [at - 1, at + 2).
template <bool kEdge, class S> DRR_HD void patch_hats(S x, S at, S (&hat)[3]) {
  const S zero = 0, one = 1, p = x - at;
  hat[0] = at_least(zero, -p);
  hat[1] = one - static_cast<S>(fabs(p));
  hat[2] = at_least(zero, p);
  if (kEdge) {
    hat[1] = at_least(zero, hat[1]);
    hat[2] = at_most(at_least(zero, one + one - p), hat[2]);
  }
}

// Adds a bundle's rays to the patch of plane k whose lowest own voxel is (a, b), all counted from
// the grid's middle. sums[3 (b' + 1) + a' + 1] is that of voxel (a + a', b + b'). With kEdge the
// patch extends by (more_a, more_b) cells, 0 or 1.
template <bool kPlain, bool kEdge, int kChannels, class S>
DRR_HD void gather_patch(const Bundle<S>& bundle, const Pixels<S>& pixels, S k, S a, S b, S more_a,
                         S more_b, S (&sums)[kChannels][9]) {
  const S one = 1, half = static_cast<S>(0.5);
  const S more_than_half_a = kEdge ? half * more_a : 0,
          more_than_half_b = kEdge ? half * more_b : 0;
  const S size = one + static_cast<S>(Bundle<S>::margin());
  forget();
  Window<S> window;
  if (!window.look(bundle, k, a + more_than_half_a, b + more_than_half_b, size + more_than_half_a,
                   size + more_than_half_b))
    return;
  const S col_a = keep(bundle.col_a), col_b = keep(bundle.col_b), col_d = keep(bundle.col_d);
  const S end_a = a + one + (kEdge ? more_a : 0), end_b = b + one + (kEdge ? more_b : 0);
  const int64_t step = keep(static_cast<int64_t>(bundle.stride_col));
#pragma unroll 1
  for (S i = window.rows.lo; i <= window.rows.hi; i += 1) {
    const Span<S> cols = window.columns(bundle, i);
    if (!(cols.lo <= cols.hi)) continue;
    const S row_a = i * bundle.row_a, row_b = i * bundle.row_b;
    const S row_d = fused(i, bundle.row_d, one);
    int32_t pixel =
        bundle.pixel + whole(i) * bundle.stride_row + whole(cols.lo) * bundle.stride_col;
    const S* image = pixels.images + pixel;
#pragma unroll 1
    for (S j = cols.lo; j <= cols.hi; j += 1, image += step, pixel += static_cast<int>(step)) {
      S g = fetch(image);
      if (!kPlain && !pixels.has(pixel, bundle.id, k)) continue;
      const S per_depth = window.t * reciprocal(fused(j, col_d, row_d));
      const S xa = fused(fused(j, col_a, row_a), per_depth, window.at_a);
      const S xb = fused(fused(j, col_b, row_b), per_depth, window.at_b);
      const bool inside = xa >= a - one && xa < end_a && xb >= b - one && xb < end_b;
      S on_a[3], on_b[3];
      patch_hats<kEdge>(xa, a, on_a);
      patch_hats<kEdge>(xb, b, on_b);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c > 0) g = fetch(image + (c < pixels.channels ? c * pixels.rays : 0));
        g = inside ? g : 0;
#pragma unroll
        for (int voxel = 0; voxel < 9; ++voxel)
          sums[c][voxel] += on_a[voxel % 3] * (g * on_b[voxel / 3]);
      }
    }
  }
}

}  // namespace drrkit
