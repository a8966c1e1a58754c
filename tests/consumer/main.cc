// A user's program against the installed package: one step of gradient descent through a straight-through estimator.
#include <stopgrad/backends/backends.h>
#include <stopgrad/core/autodiff.h>
#include <stopgrad/core/program.h>
#include <stopgrad/core/tape.h>
#include <stopgrad/ops/elementwise.h>
#include <stopgrad/ops/estimators.h>
#include <stopgrad/ops/reduce.h>

#include <cstdio>

int main() {
  sg::Variable z("z", sg::Tensor::of<float>({1, 2}, {0.4f, 1.6f}));
  sg::Tape tape;
  const sg::Value row = tape.read(z);
  const sg::Value code = sg::straight_through(row, sg::round(row));
  const sg::Value loss = sg::sum(sg::square(code));
  tape.assign(z, row - 0.25 * sg::gradient(loss, row));
  sg::Program step = sg::compile(tape, {loss}, sg::backend("cpu"));
  step.run();
  // Codes (0, 2), loss 4, gradient (0, 4) passed straight to z.
  const double loss_value = step.fetch_scalar(loss), first = z.value().at(0), second = z.value().at(1);
  std::printf("loss %g, z %g %g\n", loss_value, first, second);
  const auto near = [](double a, double b) { return a - b < 1e-6 && b - a < 1e-6; };
  return near(loss_value, 4) && near(first, 0.4) && near(second, 0.6) ? 0 : 1;
}
