#include "models/quantizers/config.h"

#include "core/error.h"

namespace sg {
namespace {

template <class E>
struct Named {
  std::string_view name;
  E value;
};
constexpr Named<CodebookUpdate> kUpdates[] = {
    {"loss", CodebookUpdate::loss},    {"ema", CodebookUpdate::ema},       {"ema-loss", CodebookUpdate::ema_loss},
    {"simvq", CodebookUpdate::simvq},  {"affine", CodebookUpdate::affine}, {"alternating", CodebookUpdate::alternating},
    {"frozen", CodebookUpdate::frozen}};
constexpr Named<CodebookInit> kInits[] = {{"uniform", CodebookInit::uniform},
                                          {"normal", CodebookInit::normal},
                                          {"kmeans", CodebookInit::kmeans},
                                          {"kmeans-rows", CodebookInit::kmeans_rows}};
constexpr Named<Assignment> kAssignments[] = {{"nearest", Assignment::nearest}, {"sinkhorn", Assignment::sinkhorn}};
constexpr Named<Revival> kRevivals[] = {
    {"threshold", Revival::threshold}, {"lru", Revival::lru}, {"split", Revival::split}};
constexpr Named<Metric> kMetrics[] = {{"euclidean", Metric::euclidean}, {"cosine", Metric::cosine}};

template <class E, std::size_t N>
std::vector<std::string> names(const Named<E> (&table)[N]) {
  std::vector<std::string> out;
  for (const Named<E>& entry : table) out.emplace_back(entry.name);
  return out;
}

template <class E, std::size_t N>
E by_name(std::string_view what, const Named<E> (&table)[N], std::string_view name) {
  std::string known;
  for (const Named<E>& entry : table) {
    if (entry.name == name) return entry.value;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  fail(ErrorKind::usage, "unknown {} '{}'; known: {}", what, name, known);
}

template <class E, std::size_t N>
std::string_view name_of(const Named<E> (&table)[N], E value) {
  for (const Named<E>& entry : table)
    if (entry.value == value) return entry.name;
  return "?";
}

}  // namespace

std::string_view to_string(CodebookUpdate v) { return name_of(kUpdates, v); }
std::string_view to_string(CodebookInit v) { return name_of(kInits, v); }
std::string_view to_string(Assignment v) { return name_of(kAssignments, v); }
std::string_view to_string(Revival v) { return name_of(kRevivals, v); }
std::string_view to_string(Metric v) { return name_of(kMetrics, v); }
CodebookUpdate codebook_update_by_name(std::string_view name) { return by_name("codebook update", kUpdates, name); }
CodebookInit codebook_init_by_name(std::string_view name) { return by_name("codebook initialisation", kInits, name); }
Assignment assignment_by_name(std::string_view name) { return by_name("assignment", kAssignments, name); }
Revival revival_by_name(std::string_view name) { return by_name("revival policy", kRevivals, name); }
Metric metric_by_name(std::string_view name) { return by_name("metric", kMetrics, name); }
std::vector<std::string> codebook_update_names() { return names(kUpdates); }
std::vector<std::string> codebook_init_names() { return names(kInits); }
std::vector<std::string> assignment_names() { return names(kAssignments); }
std::vector<std::string> revival_names() { return names(kRevivals); }

}  // namespace sg
