// The kernels for any processor.
#define DRR_LEVEL kBase
#include "instances.h"
