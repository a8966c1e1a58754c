// What every snippet of the documentation may use without saying so.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "core/program.h"
#include "core/program_cache.h"
#include "core/rewrite.h"
#include "core/safetensors.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

using namespace sg;  // NOLINT: pages show short lines
