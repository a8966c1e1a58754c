// The program `stopgrad` as a library (target stopgrad::tools): a main of your own that registers estimators or
// quantizers first has every command with them.
//
//   int main(int argc, char** argv) {
//     sg::register_estimator("half-trust", half_trust, "0.5 z + sg[q - 0.5 z]", "I/2");
//     return sg::tools::run_program(argc, argv);
//   }
#pragma once
#include <string>

#include "models/quantizers/quantizer.h"
#include "ops/estimator_table.h"

namespace sg::tools {

// Parses, runs, reports errors on stderr. Returns the exit code: 0, 1 (failed), 2 (the command line or a setting is
// wrong).
int run_program(int argc, const char* const* argv);

// Name of the running program, for hints such as "NAME train --resume": the last part of argv[0].
const std::string& program_name();

}  // namespace sg::tools
