#include <stopgrad/ops/elementwise.h>
#include <stopgrad/ops/gradient.h>
#include <stopgrad/tools/program.h>

sg::Value half_trust(sg::Value z, sg::Value q) {
  const sg::Value gz = 0.5 * z;
  return gz + sg::stop_gradient(q - gz);
}

int main(int argc, char** argv) {
  sg::register_estimator("half-trust", half_trust, "z/2 + sg[q - z/2]", "I/2");
  return sg::tools::run_program(argc, argv);
}
