#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace baton::log {

void init(const Options& options) {
  auto logger = std::make_shared<spdlog::logger>(options.process, std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_level(spdlog::level::from_str(options.level));
  logger->set_pattern(options.process.empty() ? "%m-%d %H:%M:%S.%e %^%L%$ %v" : "%m-%d %H:%M:%S.%e %^%L%$ [%n] %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace baton::log
