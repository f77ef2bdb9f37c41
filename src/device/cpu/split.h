#pragma once

#include <algorithm>

namespace baton::device::cpu {

// [begin, end) of `count` items for `member` of `size`, in multiples of `grain`.
struct Range {
  long begin, end;
};
inline Range split(long count, long grain, int member, int size) {
  const long grains = (count + grain - 1) / grain;
  const long begin = grains * member / size, end = grains * (member + 1) / size;
  return {std::min(count, begin * grain), std::min(count, end * grain)};
}

}  // namespace baton::device::cpu
