// Streams, events, capture and graphs of the emulated driver. A stream is a queue of work that runs only when something
// waits for it. Work of a capturing stream becomes nodes of a graph instead, each after the last one of its stream.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace sg::cuda::emulated {

using Work = std::function<void()>;

struct Node {
  Work run;
  std::vector<std::size_t> after;  // indices of earlier nodes
};

struct Capture {
  std::vector<Node> nodes;
  CUstream origin = nullptr;
  std::thread::id by;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  bool spoiled = false;
};

// Of a stream or of an event that a capturing stream recorded: which nodes come before what follows.
struct Position {
  std::shared_ptr<Capture> capture;
  std::set<std::size_t> tails;
};

}  // namespace sg::cuda::emulated

struct CUevent_st {
  std::uint64_t recorded = 0, done = 0;  // numbers of recordings
  CUstream stream = nullptr;             // of the last recording
  bool timing = true;
  sg::cuda::emulated::Position captured;
};

struct CUstream_st {
  struct Item {
    sg::cuda::emulated::Work run;  // null for a wait
    std::shared_ptr<CUevent_st> event;
    std::uint64_t number = 0;  // of the recording that is waited for
  };
  std::deque<Item> queue;
  sg::cuda::emulated::Position position;  // capture is null unless it is capturing
};

struct CUgraph_st {
  std::shared_ptr<const std::vector<sg::cuda::emulated::Node>> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<sg::cuda::emulated::Node>> nodes;
};

namespace sg::cuda::emulated {

class Streams {
 public:
  void set_order(std::uint64_t seed, bool lazy);

  // Runs `work`, or makes it a node of the capture that the stream is part of.
  CUresult enqueue(CUstream stream, Work work);

  CUstream create_stream();
  CUresult destroy(CUstream stream);
  CUevent create_event(bool timing);
  CUresult destroy(CUevent event);
  bool idle() const;  // nothing waits in any stream
  bool known(CUstream stream) const { return streams_.count(stream) != 0; }
  bool known(CUevent event) const { return find(event) != nullptr; }

  CUresult record(CUevent event, CUstream stream);
  CUresult wait(CUstream stream, CUevent event);
  CUresult query(CUevent event);  // makes a little progress, so that polling ends
  void run_until_done(CUevent event);
  void run_until_empty(CUstream stream);
  void run_all();
  void drop_all();  // what is waiting is forgotten

  // Whether what may wait for the device is forbidden to the calling thread while graphs are captured: those of mode
  // GLOBAL forbid it to every thread, those of mode THREAD_LOCAL to the thread that began them. spoil_: what is then
  // done to them where it is tried.
  bool forbids_waiting() const;
  void spoil_forbidding();
  CUresult begin_capture(CUstream stream, CUstreamCaptureMode mode);
  CUresult end_capture(CUstream stream, CUgraph* graph);
  CUresult launch(CUgraphExec graph, CUstream stream);

 private:
  std::shared_ptr<CUevent_st> find(CUevent event) const;
  bool step(CUstream stream);     // runs the first item of the queue; false where there is none, or it must wait
  bool advance(CUstream stream);  // one step of the stream, or of what its first item waits for
  void sometimes_run_others(CUstream stream);

  std::set<CUstream> streams_;
  std::vector<std::shared_ptr<CUevent_st>> events_;
  std::vector<std::shared_ptr<Capture>> captures_;
  std::mt19937_64 random_{1};
  bool lazy_ = true, others_ = false;
};

}  // namespace sg::cuda::emulated
