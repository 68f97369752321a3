// The kernels for any processor.
#include "joseph_tile.h"
#include "march.h"
#include "siddon_tile.h"
#include "trilinear_tile.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Joseph, JosephTile, Level::kBase>;
template struct Kernels<Siddon, SiddonTile, Level::kBase>;
template struct Kernels<Trilinear, TrilinearTile, Level::kBase>;

}  // namespace cpu
}  // namespace drrkit
