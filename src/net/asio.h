#pragma once
// For net/*.cc only. The separate-compilation macros come from the target's definitions; asio_impl.cc holds the one copy of the code.

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/basic_stream_descriptor.hpp>
#include <chrono>

namespace baton::net {

namespace asio = boost::asio;
using boost::system::error_code;

// The concrete executor: any_io_executor would cost an allocation and a virtual call per operation.
using AsioExecutor = asio::io_context::executor_type;
using AsioDescriptor = asio::posix::basic_stream_descriptor<AsioExecutor>;
using AsioTimer = asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, AsioExecutor>;

}  // namespace baton::net
