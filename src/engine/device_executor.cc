#include "engine/device_executor.h"

#include <algorithm>
#include <utility>

namespace baton::engine {
namespace {

// Nothing wakes the thread without a notification; a bound all the same, and how often other hosts get a sign of life.
constexpr Duration kIdleWait = std::chrono::seconds(1);
constexpr Duration kStartDeadline = std::chrono::minutes(2);  // of the context, whose arena is touched at once

}  // namespace

Result<std::shared_ptr<LoadedModel>> load_model(std::span<const device::DeviceOptions> devices, const model::ModelFiles& files,
                                                model::DecoderOptions options, Duration collective_deadline,
                                                std::shared_ptr<device::NodeGroup> nodes) {
  auto loaded = std::make_shared<LoadedModel>();
  loaded->nodes = nodes;
  BATON_ASSIGN_OR_RETURN(auto opened, device::open_devices(devices, collective_deadline, nodes));
  const int local = static_cast<int>(opened.size()), first = nodes ? nodes->node() * local : 0;
  options.ranks = nodes ? nodes->size() * local : local;
  const auto on_progress = std::exchange(options.on_progress, nullptr);
  for (auto& device : opened) {
    options.rank = Rank(first + static_cast<std::int32_t>(loaded->ranks.size()));
    if (loaded->ranks.empty()) options.on_progress = on_progress;
    BATON_ASSIGN_OR_RETURN(auto decoder, model::Decoder::load(*device, files, options));
    options.on_progress = nullptr;
    loaded->ranks.push_back({std::move(device), std::move(decoder)});
  }
  loaded->options = std::move(options);
  return loaded;
}

std::size_t LoadedModel::weight_bytes() const {
  std::size_t bytes = 0;
  for (const Rank& rank : ranks) bytes += rank.decoder->weight_bytes();
  return bytes;
}

Result<std::unique_ptr<DeviceExecutor>> DeviceExecutor::create(net::Executor& loop, std::shared_ptr<LoadedModel> model,
                                                               const DeviceExecutorOptions& options) {
  const model::ModelConfig& config = model->config();
  device::KvSpec spec;
  spec.layers = config.layers;
  spec.head_dim = config.head_dim;
  spec.dtype = options.kv_dtype;
  spec.block_tokens = options.kv_block_tokens > 0 ? options.kv_block_tokens : model->device().kv_block_tokens;
  for (const LoadedModel::Rank& rank : model->ranks) spec.kv_heads += rank.decoder->shard().kv_heads.size();  // copies included
  const std::size_t block_bytes = spec.bytes_per_token() * static_cast<std::size_t>(spec.block_tokens);
  spec.blocks = options.kv_blocks > 0 ? options.kv_blocks : static_cast<std::int32_t>(options.kv_bytes / block_bytes);
  if (spec.blocks < 1) {
    return {Code::kInvalidArgument, "a KV cache of " + std::to_string(options.kv_bytes) + " bytes holds no block of " +
                                        std::to_string(spec.block_tokens) + " tokens; give at least --kv-cache-memory-bytes " +
                                        std::to_string(block_bytes)};
  }
  if (model->nodes) {
    BATON_ASSIGN_OR_RETURN(const std::int64_t least, model->nodes->least(spec.blocks));
    spec.blocks = static_cast<std::int32_t>(least);
  }
  Pools pools;
  for (const LoadedModel::Rank& rank : model->ranks) {
    spec.kv_heads = rank.decoder->shard().kv_heads.size();
    BATON_ASSIGN_OR_RETURN(pools.emplace_back(), rank.device->create_kv_pool(spec));
  }
  std::unique_ptr<DeviceExecutor> executor(new DeviceExecutor(loop, std::move(model), std::move(pools), options));
  std::unique_lock lock(executor->mutex_);
  if (!executor->wake_.wait_for(lock, kStartDeadline, [&] { return executor->ready_; })) {
    return {Code::kDeadlineExceeded, "the device's context was not ready within two minutes"};
  }
  if (!executor->created_.ok()) return executor->created_;
  lock.unlock();
  return executor;
}

namespace {

DeviceStepLimits limits_of(const LoadedModel& model, const device::KvSpec& pool, std::int32_t seqs) {
  const model::DecoderOptions& d = model.options;
  return {.tokens = d.max_tokens,
          .seqs = seqs,
          .logit_rows = d.max_logit_rows,
          .positions = d.max_positions > 0 ? d.max_positions : model.config().max_positions,
          .blocks = pool.blocks,
          .block_tokens = pool.block_tokens};
}

}  // namespace

DeviceExecutor::DeviceExecutor(net::Executor& loop, std::shared_ptr<LoadedModel> model, Pools pools, const DeviceExecutorOptions& options)
    : loop_(loop),
      model_(std::move(model)),
      pools_(std::move(pools)),
      options_(options),
      limits_(limits_of(*model_, pools_[0]->view().spec, options.max_num_seqs)),
      contexts_(pools_.size()),
      statuses_(pools_.size()),
      sampler_(model_->config().vocab),
      device_step_(limits_) {
  part_.rows.reserve(static_cast<std::size_t>(options.max_num_seqs));
  mailbox_->result.rows.resize(static_cast<std::size_t>(options.max_num_seqs));
  thread_ = std::thread([this] { run(); });
}

DeviceExecutor::~DeviceExecutor() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::string DeviceExecutor::numerics_id() const { return model_->ranks[0].device->numerics_id(model_->options.compute, options_.kv_dtype); }

std::size_t DeviceExecutor::kv_bytes() const {
  std::size_t bytes = 0;
  for (const auto& pool : pools_) bytes += pool->view().spec.bytes();
  return bytes;
}

void DeviceExecutor::start(Callbacks callbacks) { mailbox_->callbacks = std::move(callbacks); }

void DeviceExecutor::submit(const StepPlan& plan) {
  {
    std::lock_guard lock(mutex_);
    BATON_CHECK(plan_ == nullptr);
    plan_ = &plan;
  }
  wake_.notify_all();
}

// On the threads that will own them.
Status DeviceExecutor::make_contexts(Team& ranks) {
  ranks.run([&](int r) {
    const auto rank = static_cast<std::size_t>(r);
    const LoadedModel::Rank& loaded = model_->ranks[rank];
    auto context = loaded.device->create_context({.arena_bytes = loaded.decoder->arena_bytes()});
    statuses_[rank] = context.status();
    if (context.ok()) contexts_[rank] = std::move(*context);
  });
  for (const Status& status : statuses_) BATON_RETURN_IF_ERROR(status);
  return {};
}

void DeviceExecutor::run() {
  Team ranks(std::vector<int>(pools_.size(), Team::kAnyCore));  // a context pins its own thread
  const Status created = make_contexts(ranks);
  {
    std::lock_guard lock(mutex_);
    ready_ = true;
    created_ = created;
  }
  wake_.notify_all();
  ranks_ = &ranks;
  if (created.ok()) model_->leads() ? lead() : end(follow());
  ranks.run([&](int r) { contexts_[static_cast<std::size_t>(r)].reset(); });  // where it was made
}

void DeviceExecutor::lead() {
  for (;;) {
    const StepPlan* plan;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kIdleWait, [&] { return stop_ || plan_ != nullptr; });
      if (stop_) break;
      plan = plan_;
    }
    if (plan == nullptr) {
      if (const Status alive = tell_nodes(Word::kAlive); !alive.ok()) end(alive);
      continue;
    }
    execute(*plan);
    {
      std::lock_guard lock(mutex_);
      plan_ = nullptr;
    }
    if (!lost_) loop_.post([mailbox = mailbox_] { mailbox->callbacks.on_result(mailbox->result); });
  }
  // They may be cut off before they have read it, unless they say that they have.
  if (tell_nodes(Word::kStop).ok() && model_->nodes) (void)model_->nodes->barrier();
}

// On node 0: what the others do next. Nothing where there are none.
Status DeviceExecutor::tell_nodes(Word word) {
  if (!model_->nodes) return {};
  words_.assign(1, static_cast<std::int32_t>(word));
  if (word == Word::kStep) device_step_.write(words_);
  return model_->nodes->broadcast(words_, words_.size());
}

// On any other node, until node 0 stops or this executor does.
Status DeviceExecutor::follow() {
  device::NodeGroup& nodes = *model_->nodes;
  while (!stopping()) {
    BATON_RETURN_IF_ERROR(nodes.broadcast(words_, 1 + limits_.words()));
    const std::span<const std::int32_t> words(words_);
    if (words.empty() || words[0] < 0 || words[0] > static_cast<std::int32_t>(Word::kStop))
      return {Code::kDataLoss, "node 0 sent what is none of ours"};
    if (Word(words[0]) == Word::kAlive) continue;
    if (Word(words[0]) == Word::kStop) {
      (void)nodes.barrier();
      return {};
    }
    BATON_RETURN_IF_ERROR(device_step_.read(words.subspan(1)));
    const float* none = nullptr;
    BATON_RETURN_IF_ERROR(compute(false, &none));
  }
  const Status left(Code::kCancelled, "this node was stopped");
  nodes.fail(left);
  return left;
}

bool DeviceExecutor::stopping() {
  const std::lock_guard lock(mutex_);
  return stop_;
}

void DeviceExecutor::end(const Status& status) {
  if (lost_.exchange(true) || !options_.on_end) return;
  loop_.post([on_end = options_.on_end, status] { on_end(status); });
}

void DeviceExecutor::execute(const StepPlan& plan) {
  const TimePoint begin = clock_.now();
  step_ = plan.step;
  StepResult& result = mailbox_->result;
  result.step = plan.step;
  if (result.rows.size() < plan.rows.size()) result.rows.resize(plan.rows.size());
  for (std::size_t r = 0; r < plan.rows.size(); ++r) {
    result.rows[r].seq = plan.rows[r].seq;
    result.rows[r].prompt.clear();
  }
  const bool report = std::any_of(plan.rows.begin(), plan.rows.end(), [](const StepRow& row) { return row.report_layers; });
  next_row_ = 0;
  next_token_ = 0;
  result.status = {};
  while (result.status.ok() && next_part(plan)) {
    const float* logits = nullptr;
    device_step_.fill(part_);
    result.status = tell_nodes(Word::kStep);
    if (result.status.ok()) result.status = compute(report && next_row_ == plan.rows.size(), &logits);
    if (result.status.ok()) sample(logits);
  }
  result.elapsed = clock_.now() - begin;
}

bool DeviceExecutor::next_part(const StepPlan& plan) {
  part_.copies.clear();
  if (next_row_ == 0 && next_token_ == 0) part_.copies.assign(plan.copies.begin(), plan.copies.end());
  part_.rows.clear();
  part_first_ = next_row_;
  for (std::int32_t room = model_->options.max_tokens; next_row_ < plan.rows.size() && room > 0;) {
    StepRow& row = part_.rows.emplace_back(plan.rows[next_row_]);
    row.begin = std::max(row.begin, next_token_);
    next_token_ = 0;
    if (row.end - row.begin > room) {
      row.end = next_token_ = row.begin + room;
      row.sample.reset();
    } else {
      ++next_row_;
    }
    room -= row.end - row.begin;
  }
  return !part_.rows.empty();
}

Status DeviceExecutor::compute(bool report_layers, const float** logits) {
  part_began_us_ = std::max<std::int64_t>(1, clock_.now().time_since_epoch().count());
  ranks_->run([&](int r) {
    const auto rank = static_cast<std::size_t>(r);
    statuses_[rank] = compute_rank(rank, report_layers, logits);
    if (statuses_[rank].ok()) return;
    contexts_[rank]->collective().fail(statuses_[rank]);
    lost(statuses_[rank]);
  });
  part_began_us_ = 0;
  for (const Status& status : statuses_) {
    if (status.ok()) continue;
    if (model_->nodes) model_->nodes->fail(status);
    return status;
  }
  // A rank of another host may have failed and still have come to the last sum: its host does not come here.
  return model_->nodes ? model_->nodes->barrier() : Status();
}

Duration DeviceExecutor::part_running() const {
  const std::int64_t began = part_began_us_;
  return began == 0 ? Duration(0) : clock_.now().time_since_epoch() - Duration(began);
}

// On the thread of any rank. The first failure is told at once: a rank that hangs may keep the step from ever ending.
void DeviceExecutor::lost(const Status& why) {
  if (!model_->leads()) return end(why);
  if (lost_.exchange(true)) return;
  loop_.post([mailbox = mailbox_, step = step_, why] {
    StepResult result;
    result.step = step;
    result.status = why;
    mailbox->callbacks.on_result(result);
  });
}

// The first rank of all tells of layers and gets the logits.
Status DeviceExecutor::compute_rank(std::size_t rank, bool report_layers, const float** logits) {
  device::Context& context = *contexts_[rank];
  device::StepMeta meta = device_step_.meta();  // each device has its own twins of the arrays
  context.reset_arena();
  BATON_RETURN_IF_ERROR(context.upload_step(meta));
  if (!device_step_.copies().empty()) context.ops().copy_blocks(*pools_[rank], device_step_.copies());
  const bool first = rank == 0 && model_->leads();
  const auto on_layer = report_layers && first ? &DeviceExecutor::on_layer : nullptr;
  BATON_ASSIGN_OR_RETURN(const device::Tensor output, model_->ranks[rank].decoder->forward(context, meta, *pools_[rank], on_layer, this));
  const void* host = nullptr;
  if (first && !meta.logit_rows.empty()) {
    BATON_ASSIGN_OR_RETURN(host, context.download(output));
  }
  BATON_RETURN_IF_ERROR(context.synchronize(options_.step_deadline));
  if (first) *logits = static_cast<const float*>(host);
  return {};
}

void DeviceExecutor::on_layer(void* self, std::uint64_t layer) {
  const auto& e = *static_cast<const DeviceExecutor*>(self);
  e.loop_.post([mailbox = e.mailbox_, step = e.step_, layer] { mailbox->callbacks.on_layer(step, static_cast<int>(layer)); });
}

void DeviceExecutor::sample(const float* logits) {
  const auto vocab = static_cast<std::size_t>(model_->config().vocab);
  const auto row_of = [&](std::int32_t index) { return std::span(logits + static_cast<std::size_t>(index) * vocab, vocab); };
  for (std::size_t r = 0; r < part_.rows.size(); ++r) {
    const StepRow& row = part_.rows[r];
    StepResult::Row& out = mailbox_->result.rows[part_first_ + r];
    std::int32_t logit = device_step_.first_logit(r);
    if (row.prompt_logprobs >= 0) {
      const std::int32_t last = std::min(row.end, static_cast<std::int32_t>(row.ids->size()) - 1);
      for (std::int32_t t = row.begin + 1; t <= last; ++t) {
        sampler_.logprobs(row_of(logit + t - 1 - row.begin), (*row.ids)[static_cast<std::size_t>(t)], row.prompt_logprobs,
                          out.prompt.emplace_back());
      }
      logit += row.end - 1 - row.begin;
    }
    out.sampled.resize(row.sample ? static_cast<std::size_t>(row.sample->choices) : 0);
    for (std::size_t c = 0; c < out.sampled.size(); ++c) {
      sampler_.sample(row_of(logit), *row.sample, *row.ids, row.sample->first_choice + static_cast<int>(c), out.sampled[c]);
    }
  }
}

}  // namespace baton::engine
