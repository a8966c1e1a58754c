#include "tools/program.h"

int main(int argc, char** argv) { return sg::tools::run_program(argc, argv); }
