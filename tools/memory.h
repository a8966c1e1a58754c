// Whether a run fits the machine, before it starts.
#pragma once
#include <cstddef>
#include <memory>

#include "core/program.h"
#include "tools/task.h"

namespace sg::tools {

// Bytes that this process can still get: the least of what the system calls available (MemAvailable), what its control
// groups (v1 and v2) leave, and its address space limit. The largest number where none of them can be read.
std::size_t available_memory();

// make_task(), unless the task's variables and the gradients of its parameters need more than `available` bytes:
// Error{unsupported} with both figures and the settings to lower. It is made once with initial values of zero first,
// which take no memory.
std::unique_ptr<Task> make_task_that_fits(const TaskSetup& setup, std::size_t available);

// The same of the task's variables together with its compiled step.
void require_memory(Task& task, const ProgramStats& stats, std::size_t available);

}  // namespace sg::tools
