#include "tests/cuda_emulator/emulated_streams.h"

#include <algorithm>

namespace sg::cuda::emulated {

void Streams::set_order(std::uint64_t seed, bool lazy) {
  random_.seed(seed);
  others_ = seed % 2 == 0;
  lazy_ = lazy;
}

CUresult Streams::enqueue(CUstream stream, Work work) {
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (Position& at = stream->position; at.capture) {
    if (at.capture->spoiled) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    at.capture->nodes.push_back({std::move(work), {at.tails.begin(), at.tails.end()}});
    at.tails = {at.capture->nodes.size() - 1};
    return CUDA_SUCCESS;
  }
  stream->queue.push_back({std::move(work), nullptr, 0});
  if (!lazy_) run_until_empty(stream);
  return CUDA_SUCCESS;
}

CUstream Streams::create_stream() { return *streams_.insert(new CUstream_st).first; }

CUresult Streams::destroy(CUstream stream) {
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->position.capture) {
    stream->position.capture->spoiled = true;
    std::erase(captures_, stream->position.capture);
  }
  run_until_empty(stream);
  streams_.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}

CUevent Streams::create_event(bool timing) {
  events_.push_back(std::make_shared<CUevent_st>());
  events_.back()->timing = timing;
  return events_.back().get();
}

bool Streams::idle() const {
  return std::all_of(streams_.begin(), streams_.end(), [](CUstream s) { return s->queue.empty(); });
}

std::shared_ptr<CUevent_st> Streams::find(CUevent event) const {
  for (const auto& e : events_)
    if (e.get() == event) return e;
  return nullptr;
}

CUresult Streams::destroy(CUevent event) {
  return std::erase(events_, find(event)) == 0 ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;  // queued waits keep theirs
}

CUresult Streams::record(CUevent event, CUstream stream) {
  const auto e = find(event);
  if (!e || !known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->position.capture) {
    if (stream->position.capture->spoiled) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    e->captured = stream->position;
    return CUDA_SUCCESS;
  }
  e->captured = {};
  e->stream = stream;
  const std::uint64_t number = ++e->recorded;
  return enqueue(stream, [e, number] { e->done = std::max(e->done, number); });
}

CUresult Streams::wait(CUstream stream, CUevent event) {
  const auto e = find(event);
  if (!e || !known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (Position& at = stream->position; at.capture || e->captured.capture) {
    if (!e->captured.capture) {  // recorded outside: a graph cannot depend on what is not in it
      at.capture->spoiled = true;
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (e->captured.capture->spoiled) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (at.capture && at.capture != e->captured.capture) {
      at.capture->spoiled = e->captured.capture->spoiled = true;
      return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    at.capture = e->captured.capture;
    at.tails.insert(e->captured.tails.begin(), e->captured.tails.end());
    return CUDA_SUCCESS;
  }
  stream->queue.push_back({nullptr, e, e->recorded});
  if (!lazy_) run_until_empty(stream);
  return CUDA_SUCCESS;
}

bool Streams::step(CUstream stream) {
  if (stream->queue.empty()) return false;
  auto& first = stream->queue.front();
  if (first.event) {
    if (first.event->done < first.number) return false;
    stream->queue.pop_front();
    return true;
  }
  const Work work = std::move(first.run);
  stream->queue.pop_front();
  work();
  return true;
}

bool Streams::advance(CUstream stream) {
  // A wait is satisfied by the stream that recorded the event, whose first item may wait in turn. Recordings come
  // before the waits for them, so this ends.
  for (CUstream at = stream;;) {
    if (at->queue.empty()) return false;
    if (step(at)) return true;
    at = at->queue.front().event->stream;
    if (!known(at)) return false;
  }
}

void Streams::sometimes_run_others(CUstream stream) {
  if (!others_ || random_() % 2 == 0) return;
  std::vector<CUstream> others;
  for (const CUstream s : streams_)
    if (s != stream && !s->queue.empty()) others.push_back(s);
  if (!others.empty()) step(others[random_() % others.size()]);
}

void Streams::run_until_empty(CUstream stream) {
  while (!stream->queue.empty()) {
    sometimes_run_others(stream);
    if (!advance(stream)) return;
  }
}

void Streams::run_until_done(CUevent event) {
  const auto e = find(event);
  const std::uint64_t number = e->recorded;
  while (e->done < number && known(e->stream)) {
    sometimes_run_others(e->stream);
    if (!advance(e->stream)) return;
  }
}

void Streams::run_all() {
  std::vector<CUstream> order(streams_.begin(), streams_.end());
  std::shuffle(order.begin(), order.end(), random_);
  for (const CUstream s : order) run_until_empty(s);
}

void Streams::drop_all() {
  for (const CUstream s : streams_) {
    s->queue.clear();
    s->position = {};
  }
  for (const auto& e : events_) e->done = e->recorded;
  captures_.clear();
}

CUresult Streams::query(CUevent event) {
  const auto e = find(event);
  if (!e) return CUDA_ERROR_INVALID_HANDLE;
  if (e->captured.capture) return CUDA_ERROR_CAPTURED_EVENT;
  if (e->done >= e->recorded) return CUDA_SUCCESS;
  advance(e->stream);
  return CUDA_ERROR_NOT_READY;
}

namespace {
bool forbids(const Capture& capture) {
  return capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
         (capture.mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && capture.by == std::this_thread::get_id());
}
}  // namespace

bool Streams::forbids_waiting() const {
  return std::any_of(captures_.begin(), captures_.end(), [](const auto& c) { return forbids(*c); });
}

void Streams::spoil_forbidding() {
  for (const auto& capture : captures_)
    if (forbids(*capture)) capture->spoiled = true;
}

CUresult Streams::begin_capture(CUstream stream, CUstreamCaptureMode mode) {
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->position.capture) return CUDA_ERROR_ILLEGAL_STATE;
  captures_.push_back(std::make_shared<Capture>());
  captures_.back()->origin = stream;
  captures_.back()->by = std::this_thread::get_id();
  captures_.back()->mode = mode;
  stream->position = {captures_.back(), {}};
  return CUDA_SUCCESS;
}

CUresult Streams::end_capture(CUstream stream, CUgraph* graph) {
  *graph = nullptr;
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  const Position at = stream->position;
  if (!at.capture) return CUDA_ERROR_ILLEGAL_STATE;
  if (at.capture->origin != stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  std::erase(captures_, at.capture);
  for (const CUstream s : streams_)
    if (s->position.capture == at.capture) s->position = {};
  for (const auto& e : events_)
    if (e->captured.capture == at.capture) e->captured = {};
  if (at.capture->spoiled) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;

  // Every node must come before the end of the origin's stream.
  std::vector<bool> joined(at.capture->nodes.size(), false);
  for (const std::size_t tail : at.tails) joined[tail] = true;
  for (std::size_t i = joined.size(); i-- > 0;)
    if (joined[i])
      for (const std::size_t before : at.capture->nodes[i].after) joined[before] = true;
  if (std::find(joined.begin(), joined.end(), false) != joined.end()) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;

  *graph = new CUgraph_st{std::make_shared<const std::vector<Node>>(at.capture->nodes)};
  return CUDA_SUCCESS;
}

CUresult Streams::launch(CUgraphExec graph, CUstream stream) {
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->position.capture) return CUDA_ERROR_NOT_SUPPORTED;
  // Any order that the edges allow.
  return enqueue(stream, [this, shared = graph->nodes] {
    const std::vector<Node>& nodes = *shared;
    std::vector<std::size_t> missing(nodes.size()), ready;  // missing: how many nodes before it have not run yet
    std::vector<std::vector<std::size_t>> next(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      missing[i] = nodes[i].after.size();
      for (const std::size_t before : nodes[i].after) next[before].push_back(i);
      if (missing[i] == 0) ready.push_back(i);
    }
    while (!ready.empty()) {
      std::swap(ready[random_() % ready.size()], ready.back());
      const std::size_t node = ready.back();
      ready.pop_back();
      nodes[node].run();
      for (const std::size_t after : next[node])
        if (--missing[after] == 0) ready.push_back(after);
    }
  });
}

}  // namespace sg::cuda::emulated
