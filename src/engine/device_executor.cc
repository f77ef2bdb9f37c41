#include "engine/device_executor.h"

#include <algorithm>
#include <utility>

namespace baton::engine {
namespace {

constexpr Duration kIdleWait = std::chrono::seconds(1);       // nothing wakes the thread without a notification; a bound all the same
constexpr Duration kStartDeadline = std::chrono::minutes(2);  // of the context, whose arena is touched at once

}  // namespace

Result<std::shared_ptr<LoadedModel>> load_model(std::span<const device::DeviceOptions> devices, const model::ModelFiles& files,
                                                model::DecoderOptions options, Duration collective_deadline) {
  auto loaded = std::make_shared<LoadedModel>();
  BATON_ASSIGN_OR_RETURN(auto opened, device::open_devices(devices, collective_deadline));
  options.ranks = static_cast<int>(opened.size());
  const auto on_progress = std::exchange(options.on_progress, nullptr);
  for (auto& device : opened) {
    options.rank = Rank(static_cast<std::int32_t>(loaded->ranks.size()));
    if (options.rank == Rank(0)) options.on_progress = on_progress;
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

DeviceExecutor::DeviceExecutor(net::Executor& loop, std::shared_ptr<LoadedModel> model, Pools pools, const DeviceExecutorOptions& options)
    : loop_(loop),
      model_(std::move(model)),
      pools_(std::move(pools)),
      options_(options),
      contexts_(pools_.size()),
      statuses_(pools_.size()),
      sampler_(model_->config().vocab) {
  const model::DecoderOptions& d = model_->options;
  const auto tokens = static_cast<std::size_t>(d.max_tokens), seqs = static_cast<std::size_t>(options.max_num_seqs);
  const std::int64_t positions = d.max_positions > 0 ? d.max_positions : model_->config().max_positions;
  const auto blocks = static_cast<std::size_t>((positions + kv_block_tokens() - 1) / kv_block_tokens());
  token_ids_.reserve(tokens);
  positions_.reserve(tokens);
  slots_.reserve(tokens);
  q_start_.reserve(seqs + 1);
  kv_len_.reserve(seqs);
  block_tables_.reserve(seqs * std::min(blocks, static_cast<std::size_t>(kv_blocks())));
  logit_rows_.reserve(static_cast<std::size_t>(d.max_logit_rows));
  first_logit_.reserve(seqs);
  part_.rows.reserve(seqs);
  copies_.reserve(seqs);
  mailbox_->result.rows.resize(seqs);
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
  while (created.ok()) {
    const StepPlan* plan;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kIdleWait, [&] { return stop_ || plan_ != nullptr; });
      if (stop_) break;
      plan = plan_;
    }
    if (plan == nullptr) continue;
    execute(*plan);
    {
      std::lock_guard lock(mutex_);
      plan_ = nullptr;
    }
    if (!lost_) loop_.post([mailbox = mailbox_] { mailbox->callbacks.on_result(mailbox->result); });
  }
  ranks.run([&](int r) { contexts_[static_cast<std::size_t>(r)].reset(); });  // where it was made
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
    result.status = compute(report && next_row_ == plan.rows.size(), &logits);
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
  fill();
  ranks_->run([&](int r) {
    const auto rank = static_cast<std::size_t>(r);
    statuses_[rank] = compute_rank(rank, report_layers, logits);
    if (statuses_[rank].ok()) return;
    contexts_[rank]->collective().fail(statuses_[rank]);
    lost(statuses_[rank]);
  });
  for (const Status& status : statuses_) BATON_RETURN_IF_ERROR(status);
  return {};
}

// On the thread of any rank. The first failure is told at once: a rank that hangs may keep the step from ever ending.
void DeviceExecutor::lost(const Status& why) {
  if (lost_.exchange(true)) return;
  loop_.post([mailbox = mailbox_, step = step_, why] {
    StepResult result;
    result.step = step;
    result.status = why;
    mailbox->callbacks.on_result(result);
  });
}

// The first rank tells of layers and gets the logits.
Status DeviceExecutor::compute_rank(std::size_t rank, bool report_layers, const float** logits) {
  device::Context& context = *contexts_[rank];
  device::StepMeta meta = meta_;  // each device has its own twins of the arrays
  context.reset_arena();
  BATON_RETURN_IF_ERROR(context.upload_step(meta));
  if (!copies_.empty()) context.ops().copy_blocks(*pools_[rank], copies_);
  const auto on_layer = report_layers && rank == 0 ? &DeviceExecutor::on_layer : nullptr;
  BATON_ASSIGN_OR_RETURN(const device::Tensor output, model_->ranks[rank].decoder->forward(context, meta, *pools_[rank], on_layer, this));
  const void* host = nullptr;
  if (rank == 0 && !logit_rows_.empty()) {
    BATON_ASSIGN_OR_RETURN(host, context.download(output));
  }
  BATON_RETURN_IF_ERROR(context.synchronize(options_.step_deadline));
  if (rank == 0) *logits = static_cast<const float*>(host);
  return {};
}

void DeviceExecutor::on_layer(void* self, std::uint64_t layer) {
  const auto& e = *static_cast<const DeviceExecutor*>(self);
  e.loop_.post([mailbox = e.mailbox_, step = e.step_, layer] { mailbox->callbacks.on_layer(step, static_cast<int>(layer)); });
}

void DeviceExecutor::fill() {
  token_ids_.clear();
  positions_.clear();
  slots_.clear();
  q_start_.clear();
  kv_len_.clear();
  logit_rows_.clear();
  first_logit_.clear();
  copies_.clear();
  for (const auto& copy : part_.copies) copies_.push_back({.from = copy.from, .to = copy.to});

  std::int32_t max_blocks = 0;
  for (const StepRow& row : part_.rows) {
    max_blocks = std::max(max_blocks, (row.end + kv_block_tokens() - 1) / kv_block_tokens());
    fill_row(row);
  }
  q_start_.push_back(static_cast<std::int32_t>(token_ids_.size()));
  block_tables_.assign(part_.rows.size() * static_cast<std::size_t>(max_blocks), 0);
  for (std::size_t r = 0; r < part_.rows.size(); ++r) {
    const std::vector<BlockId>& blocks = *part_.rows[r].blocks;
    const auto used = std::min(static_cast<std::size_t>(max_blocks), blocks.size());
    for (std::size_t b = 0; b < used; ++b) block_tables_[r * static_cast<std::size_t>(max_blocks) + b] = blocks[b].value;
  }
  meta_.token_ids = token_ids_;
  meta_.positions = positions_;
  meta_.slots = slots_;
  meta_.q_start = q_start_;
  meta_.kv_len = kv_len_;
  meta_.block_tables = block_tables_;
  meta_.max_blocks = max_blocks;
  meta_.logit_rows = logit_rows_;
}

void DeviceExecutor::fill_row(const StepRow& row) {
  const int size = kv_block_tokens();
  const auto first_token = static_cast<std::int32_t>(token_ids_.size());
  q_start_.push_back(first_token);
  kv_len_.push_back(row.end);
  for (std::int32_t t = row.begin; t < row.end; ++t) {
    token_ids_.push_back((*row.ids)[static_cast<std::size_t>(t)]);
    positions_.push_back(t);
    slots_.push_back((*row.blocks)[static_cast<std::size_t>(t / size)].value * size + t % size);
  }
  first_logit_.push_back(static_cast<std::int32_t>(logit_rows_.size()));
  const auto end_token = static_cast<std::int32_t>(token_ids_.size());
  if (row.prompt_logprobs >= 0) {
    for (std::int32_t t = first_token; t < end_token; ++t) logit_rows_.push_back(t);
  } else if (row.sample) {
    logit_rows_.push_back(end_token - 1);
  }
}

void DeviceExecutor::sample(const float* logits) {
  const auto vocab = static_cast<std::size_t>(model_->config().vocab);
  const auto row_of = [&](std::int32_t index) { return std::span(logits + static_cast<std::size_t>(index) * vocab, vocab); };
  for (std::size_t r = 0; r < part_.rows.size(); ++r) {
    const StepRow& row = part_.rows[r];
    StepResult::Row& out = mailbox_->result.rows[part_first_ + r];
    std::int32_t logit = first_logit_[r];
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
