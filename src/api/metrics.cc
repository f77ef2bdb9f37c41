#include "api/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>

namespace baton::api {
namespace {

using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

const Buckets kTtft = {.001, .0025, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
// vLLM's smallest bucket is 10 ms; finer ones below do not disturb histogram_quantile.
const Buckets kItl = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
const Buckets kSeconds = {.01, .03, .1, .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};

// 1, 2, 5, 10, 20, ... up to `most`.
Buckets steps_125(std::int64_t most) {
  Buckets out;
  for (std::int64_t decade = 1;; decade *= 10)
    for (const std::int64_t m : {1, 2, 5}) {
      if (m * decade > most) return out;
      out.push_back(static_cast<double>(m * decade));
    }
}

}  // namespace

struct Metrics::Impl {
  explicit Impl(std::string model, std::int64_t max_model_len)
      : labels{{"model_name", std::move(model)}, {"engine", "0"}}, tokens(steps_125(max_model_len)) {}

  prometheus::Registry registry;
  prometheus::Labels labels;
  Buckets tokens;

  Histogram& histogram(const std::string& name, const std::string& help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name("vllm:" + name).Help(help).Register(registry).Add(labels, buckets);
  }
  prometheus::Counter& counter(const std::string& name, const std::string& help, prometheus::Labels extra = {}) {
    extra.insert(labels.begin(), labels.end());
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(extra);
  }
  prometheus::Gauge& gauge(const std::string& name, const std::string& help, prometheus::Labels extra) {
    extra.emplace("model_name", labels.at("model_name"));
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(extra);
  }
  // Sets a counter that is kept elsewhere. A worker that restarted counts from zero again; the counter then grows from there.
  void advance(prometheus::Counter& target, const std::string& key, double value) {
    double& last = seen[key];
    if (value < last) last = 0;
    if (value > last) target.Increment(value - last);
    last = value;
  }
  // The same for a histogram.
  void advance(const NamedHistogram& source) {
    auto& target = prometheus::BuildHistogram()
                       .Name("baton:" + source.name)
                       .Help(source.help)
                       .Register(registry)
                       .Add({{"model_name", labels.at("model_name")}}, source.bounds);
    std::vector<std::uint64_t>& last = buckets_seen[source.name];
    last.resize(source.counts.size());
    std::vector<double> more;
    for (std::size_t i = 0; i < source.counts.size(); ++i) {
      more.push_back(static_cast<double>(source.counts[i] - last[i]));
      last[i] = source.counts[i];
    }
    double& sum = seen[source.name];
    target.ObserveMultiple(more, source.sum - sum);
    sum = source.sum;
  }
  std::map<std::string, double> seen;
  std::map<std::string, std::vector<std::uint64_t>> buckets_seen;

  // Made once, used at each request.
  Histogram& ttft = histogram("time_to_first_token_seconds", "Time to first token in seconds.", kTtft);
  Histogram& itl = histogram("inter_token_latency_seconds", "Inter-token latency in seconds.", kItl);
  Histogram& tpot = histogram("request_time_per_output_token_seconds", "Time per output token of a request, without the first.", kItl);
  Histogram& e2e = histogram("e2e_request_latency_seconds", "End-to-end request latency in seconds.", kSeconds);
  Histogram& queue = histogram("request_queue_time_seconds", "Time a request waited before its prompt was computed.", kSeconds);
  Histogram& inference = histogram("request_inference_time_seconds", "Time from the start of prefill to the last token.", kSeconds);
  Histogram& prefill = histogram("request_prefill_time_seconds", "Time a request spent in prefill.", kSeconds);
  Histogram& decode = histogram("request_decode_time_seconds", "Time a request spent in decode.", kSeconds);
  Histogram& prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", tokens);
  Histogram& generation = histogram("request_generation_tokens", "Generated tokens of a request.", tokens);
  Histogram& params_max_tokens = histogram("request_params_max_tokens", "max_tokens of a request.", tokens);
  Histogram& params_n = histogram("request_params_n", "n of a request.", {1, 2, 5, 10, 20});
  Histogram& kv_bytes = prometheus::BuildHistogram()
                            .Name("baton:handoff_bytes")
                            .Help("KV bytes handed over for a request.")
                            .Register(registry)
                            .Add(labels, Buckets{1e4, 1e5, 1e6, 1e7, 1e8, 1e9});
};

Metrics::Metrics(std::string model_name, std::int64_t max_model_len)
    : impl_(std::make_unique<Impl>(std::move(model_name), max_model_len)) {}
Metrics::~Metrics() = default;

void Metrics::request_started(const wire::GenerateRequest& request) {
  impl_->params_max_tokens.Observe(request.sampling.max_tokens);
  impl_->params_n.Observe(request.n);
}

void Metrics::inter_token(Duration gap) { impl_->itl.Observe(to_seconds(gap)); }

void Metrics::request_finished(const Finished& f) {
  Impl& m = *impl_;
  m.counter("vllm:request_success_total", "Finished requests by reason.", {{"finished_reason", f.reason}}).Increment();
  m.counter("baton:requests_total", "Requests by the way they were served.", {{"path", f.disaggregated ? "disaggregated" : "aggregated"}})
      .Increment();
  m.counter("vllm:prompt_tokens_total", "Prompt tokens.").Increment(f.prompt_tokens);
  m.counter("vllm:prompt_tokens_cached_total", "Prompt tokens found in a prefix cache.").Increment(f.cached_tokens);
  m.counter("vllm:generation_tokens_total", "Generated tokens.").Increment(f.generated_tokens);
  m.prompt.Observe(f.prompt_tokens);
  m.generation.Observe(f.generated_tokens);
  m.e2e.Observe(to_seconds(f.e2e));
  const auto observe = [](Histogram& h, Duration d) {
    if (d.count() >= 0) h.Observe(to_seconds(d));
  };
  observe(m.queue, f.queue);
  observe(m.prefill, f.prefill);
  observe(m.ttft, f.ttft);
  observe(m.decode, f.decode);
  if (f.queue.count() >= 0) observe(m.inference, f.e2e - f.queue);
  if (f.generated_tokens > 1 && f.decode.count() >= 0) m.tpot.Observe(to_seconds(f.decode) / (f.generated_tokens - 1));
  if (f.kv_bytes > 0) m.kv_bytes.Observe(static_cast<double>(f.kv_bytes));
}

std::string Metrics::serialize(const std::vector<wire::WorkerStatus>& workers, const std::vector<Named>& counters,
                               const std::vector<NamedHistogram>& histograms) {
  Impl& m = *impl_;
  for (const wire::WorkerStatus& w : workers) {
    const prometheus::Labels id{{"engine", w.name}};
    const auto gauge = [&](const char* name, const char* help, double value) { m.gauge(name, help, id).Set(value); };
    gauge("vllm:num_requests_running", "Requests in the running batch.", w.running);
    gauge("vllm:num_requests_waiting", "Requests waiting to be scheduled.", w.waiting);
    const double total = std::max(1, w.blocks_total);
    gauge("vllm:kv_cache_usage_perc", "KV cache usage; 1 is full.", (w.blocks_total - w.blocks_free - w.blocks_cached) / total);
    gauge("baton:kv_blocks_free", "KV blocks that hold nothing.", w.blocks_free);
    gauge("baton:kv_blocks_cached", "KV blocks of the prefix cache that nobody uses now.", w.blocks_cached);
    gauge("baton:kv_oldest_held_seconds", "Age of the oldest KV that waits to be fetched.", w.oldest_held_ms / 1e3);
    gauge("baton:kv_blocks_held", "KV blocks that somebody holds.", w.blocks_held);
    gauge("baton:kv_blocks_promised", "KV blocks that leases may come to take.", w.blocks_promised);
    gauge("baton:kv_blocks_retained", "Held blocks of hand-offs that nobody has claimed.", w.blocks_retained);
    gauge("baton:kv_books_unbalanced", "1 if free, cached and held blocks do not add up, or something is held for nobody.", !w.balanced);
    const auto by = [&](const char* name, const char* help, const char* label, const std::string& of, double value) {
      m.gauge(name, help, {{"engine", w.name}, {label, of}}).Set(value);
    };
    for (const auto& [state, n] : w.leases) by("baton:leases", "Leases of the decode side, by state.", "state", state, n);
    for (const auto& [state, n] : w.handoffs) by("baton:handoffs", "Hand-offs of the prefill side, by state.", "state", state, n);
    for (const auto& [reason, ms] : w.held_ms) {
      by("baton:kv_held_without_progress_seconds", "Longest time that KV or credit has been held without progress, by reason.", "reason",
         reason, ms / 1e3);
    }
    gauge("baton:worker_ready", "1 while the worker takes requests.", w.ready && !w.draining);
    m.gauge("vllm:cache_config_info", "Static facts of the KV cache.",
            {{"engine", w.name},
             {"block_size", std::to_string(w.block_tokens)},
             {"num_gpu_blocks", std::to_string(w.blocks_total)},
             {"cache_dtype", w.kv.dtype},
             {"enable_prefix_caching", "True"},
             {"role", std::string(to_string(w.role))}})
        .Set(1);
    const auto count = [&](const std::string& name, const char* help, double value) {
      auto& target = prometheus::BuildCounter()
                         .Name(name)
                         .Help(help)
                         .Register(m.registry)
                         .Add({{"model_name", m.labels.at("model_name")}, {"engine", w.name}});
      m.advance(target, name + '/' + w.name, value);
    };
    count("vllm:num_preemptions_total", "Preemptions.", static_cast<double>(w.preemptions));
    count("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", static_cast<double>(w.prefix_queries));
    count("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", static_cast<double>(w.prefix_hits));
    count("baton:steps_total", "Engine steps.", static_cast<double>(w.steps));
    count("baton:handoffs_ok_total", "Hand-offs committed.", static_cast<double>(w.handoffs_ok));
    count("baton:handoffs_failed_total", "Hand-offs refused, aborted or not verified.", static_cast<double>(w.handoffs_failed));
    count("baton:holds_claimed_total", "Retained prompts that were claimed.", static_cast<double>(w.holds_claimed));
    count("baton:holds_dropped_total", "Retained prompts that were given up.", static_cast<double>(w.holds_dropped));
    count("baton:links_refused_total", "Hand-off links closed for what came over them, or did not.", static_cast<double>(w.links_refused));
    count("baton:handoff_bytes_total", "KV bytes handed over.", static_cast<double>(w.kv_bytes));
  }
  for (const Named& named : counters) {
    prometheus::Labels labels(named.labels.begin(), named.labels.end());
    labels.emplace("model_name", m.labels.at("model_name"));
    std::string key = named.name;
    for (const auto& [name, value] : named.labels) key += '/' + name + '=' + value;
    m.advance(
        prometheus::BuildCounter().Name("baton:" + named.name + "_total").Help("Kept by the gateway.").Register(m.registry).Add(labels),
        key, named.value);
  }
  for (const NamedHistogram& h : histograms) m.advance(h);
  return prometheus::TextSerializer().Serialize(m.registry.Collect());
}

}  // namespace baton::api
