// The estimators that the library has: the rows with which the table of ops/estimator_table.h starts.
#pragma once
#include <vector>

#include "ops/estimator_table.h"

namespace sg {

std::vector<EstimatorDef> built_in_estimators();

}  // namespace sg
