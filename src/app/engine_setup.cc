#include "app/engine_setup.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "app/args.h"
#include "app/devices.h"
#include "app/memory.h"
#include "app/paths.h"
#include "base/log.h"

namespace baton::app {
namespace {

device::DType kv_dtype(const std::string& flag) {
  if (flag == "float16" || flag == "half") return device::DType::kF16;
  if (flag == "float32" || flag == "float") return device::DType::kF32;
  return device::DType::kBF16;
}

device::ComputeType compute_type(const EngineFlags& flags, const model::ModelFiles& files) {
  if (flags.compute_type != "auto") return *device::compute_type_from_string(flags.compute_type);
  if (flags.dtype == "float" || flags.dtype == "float32") return device::ComputeType::kF32;
  return device::block_weights(files.dominant_format()) > 1 ? device::ComputeType::kInt8 : device::ComputeType::kBF16;
}

// What the KV cache gets: the flag, or enough for every sequence at full length within a share of the free memory, 4 GiB at most.
Result<std::size_t> kv_bytes(const EngineFlags& flags, int peers, double bytes_per_token, std::int64_t max_model_len) {
  if (!flags.kv_cache_memory_bytes.empty()) {
    BATON_ASSIGN_OR_RETURN(const std::int64_t bytes, parse_size(flags.kv_cache_memory_bytes));
    return static_cast<std::size_t>(bytes);
  }
  // A sequence takes whole blocks.
  const double wanted = bytes_per_token * (static_cast<double>(max_model_len) + std::max(flags.block_size, 128)) * flags.max_num_seqs;
  const double share = memory_info().available * 0.5 / std::max(1, peers);
  return static_cast<std::size_t>(std::min({wanted, share, 4.0 * (1ull << 30)}));
}

// One a rank.
Result<std::vector<device::DeviceOptions>> devices_of(const EngineFlags& flags) {
  std::vector<device::DeviceOptions> devices(static_cast<std::size_t>(flags.local_ranks()));
  for (device::DeviceOptions& device : devices) device.isa = flags.isa;
  if (devices.size() == 1 && flags.cores.empty() && flags.threads > 0) {  // which may be more than there are cores
    devices[0].threads = flags.threads;
    return devices;
  }
  BATON_ASSIGN_OR_RETURN(DevicePlan plan, plan_devices(device::cpu::allowed_cpus(), flags, flags.local_ranks()));
  limit_threads(plan.devices, flags.threads);
  for (const std::string& notice : notices_of(plan)) log::warn("{}", notice);
  for (std::size_t r = 0; r < devices.size(); ++r) devices[r].cores = plan.devices[r];
  return devices;
}

// Meets the other hosts; none where there are none.
Result<Nodes> meet(const EngineFlags& flags, const EngineSetup& setup, const model::DecoderOptions& decoder) {
  if (!flags.nodes.several()) return Nodes{};
  // Only to ask which instruction set it has: others would round otherwise.
  BATON_ASSIGN_OR_RETURN(const auto device, device::open_device(setup.devices[0]));
  return meet_nodes(flags.nodes, {{"Baton's version", kVersion},
                                  {"the model's digest", setup.files->digest()},
                                  {"--tensor-parallel-size", std::to_string(flags.tensor_parallel_size)},
                                  {"--compute-type", std::string(to_string(setup.compute))},
                                  {"--dtype", std::string(to_string(setup.kv_dtype))},
                                  {"the instruction set (--isa)", device->info().isa},
                                  {"--max-model-len", std::to_string(setup.options.max_model_len)},
                                  {"--max-num-seqs", std::to_string(flags.max_num_seqs)},
                                  {"--max-num-batched-tokens", std::to_string(decoder.max_tokens)},
                                  {"--block-size", std::to_string(flags.block_size)}});
}

std::string describe_ranks(const std::vector<device::DeviceOptions>& devices) {
  CoreSets sets;
  for (const device::DeviceOptions& d : devices) sets.push_back(d.cores);
  return describe_devices(device::cpu::allowed_cpus(), sets);
}

}  // namespace

Result<EngineSetup> set_up_engine(const EngineFlags& flags, int peers, net::EventLoop& loop, std::function<void(Status)> on_end) {
  const Clock& clock = loop.clock();
  const TimePoint start = clock.now();
  EngineSetup setup;
  BATON_ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.model));
  BATON_ASSIGN_OR_RETURN(setup.files, model::ModelFiles::open(path));
  const model::ModelConfig& config = setup.files->config();
  setup.compute = compute_type(flags, *setup.files);
  setup.kv_dtype = kv_dtype(flags.dtype);
  BATON_ASSIGN_OR_RETURN(setup.options.max_model_len, effective_max_model_len(flags.max_model_len, config.max_positions));
  BATON_ASSIGN_OR_RETURN(const std::int64_t batched, parse_size(flags.max_num_batched_tokens));
  if (batched < 1 || batched > 65536)
    return Status(Code::kInvalidArgument, fmt::format("--max-num-batched-tokens {}: give 1 to 65536", flags.max_num_batched_tokens));

  BATON_ASSIGN_OR_RETURN(setup.devices, devices_of(flags));
  model::DecoderOptions decoder;
  decoder.compute = setup.compute;
  decoder.max_positions = setup.options.max_model_len;
  decoder.max_tokens = static_cast<std::int32_t>(std::max<std::int64_t>(batched, flags.max_num_seqs));
  decoder.max_logit_rows = flags.max_num_seqs;
  BATON_ASSIGN_OR_RETURN(Nodes nodes, meet(flags, setup, decoder));
  BATON_ASSIGN_OR_RETURN(setup.loaded, engine::load_model(setup.devices, *setup.files, decoder, engine::kCollectiveDeadline, nodes.group));
  setup.load_seconds = to_seconds(clock.now() - start);
  log::info("loaded {} in {:.2f} s: {}, compute {}, {} on {}", to_string(setup.files->dominant_format()), setup.load_seconds,
            format_bytes(static_cast<double>(setup.loaded->weight_bytes())), to_string(setup.compute), setup.loaded->device().isa,
            setup.loaded->device().name);
  if (setup.devices.size() > 1) log::info("tensor parallel over {} ranks, cores {}", setup.devices.size(), describe_ranks(setup.devices));

  engine::DeviceExecutorOptions executor;
  executor.kv_dtype = setup.kv_dtype;
  executor.kv_block_tokens = flags.block_size;
  executor.max_num_seqs = flags.max_num_seqs;
  executor.on_end = std::move(on_end);
  int kv_heads = 0;  // on this host, copies included
  for (const auto& rank : setup.loaded->ranks) kv_heads += rank.decoder->shard().kv_heads.size();
  const double per_token = 2.0 * config.layers * kv_heads * config.head_dim * static_cast<double>(size_of(setup.kv_dtype));
  BATON_ASSIGN_OR_RETURN(executor.kv_bytes, kv_bytes(flags, peers, per_token, setup.options.max_model_len));
  if (nodes.meeting) BATON_RETURN_IF_ERROR(wait_for_nodes(nodes, flags.nodes));
  BATON_ASSIGN_OR_RETURN(setup.executor, engine::DeviceExecutor::create(loop, setup.loaded, executor));
  const int block_tokens = setup.executor->kv_block_tokens();
  const double bytes = static_cast<double>(setup.executor->kv_bytes()),
               tokens = static_cast<double>(setup.executor->kv_blocks()) * block_tokens;
  if (tokens < static_cast<double>(setup.options.max_model_len)) {
    return Status(Code::kResourceExhausted,
                  fmt::format("the KV cache of {} holds {:.0f} tokens, but --max-model-len {} may need as many in one request; largest "
                              "that fits: --max-model-len {:.0f}, or --kv-cache-memory-bytes {:.0f}MiB",
                              format_bytes(bytes), tokens, setup.options.max_model_len, tokens,
                              bytes / tokens * static_cast<double>(setup.options.max_model_len + block_tokens) / (1 << 20) + 1));
  }
  log::info("KV cache size: {:.0f} tokens ({}, blocks of {}); max concurrency at {} tokens: {:.2f}", tokens, format_bytes(bytes),
            block_tokens, setup.options.max_model_len, tokens / static_cast<double>(setup.options.max_model_len));
  setup.options.max_num_seqs = flags.max_num_seqs;
  setup.options.max_num_batched_tokens = static_cast<std::int32_t>(batched);
  setup.options.max_step = std::chrono::milliseconds(flags.max_step_ms);
  setup.options.kv_blocks = setup.executor->kv_blocks();
  setup.options.block_tokens = block_tokens;
  setup.options.vocab = config.vocab;
  setup.options.prefix_cache = !flags.no_prefix_caching;
  setup.options.chunked_prefill = flags.chunked_prefill;
  return setup;
}

}  // namespace baton::app
