#include "device/kv_view.h"

namespace baton::device {

KvView KvView::dense(const KvSpec& spec) {
  BATON_CHECK(spec.block_tokens > 0);
  KvView view;
  view.spec = spec;
  view.token_stride = static_cast<std::int64_t>(spec.row_bytes());
  view.kind_stride = view.token_stride * spec.block_tokens;
  view.head_stride = view.kind_stride * 2;
  view.block_stride = view.head_stride * spec.kv_heads;
  view.layer_stride = view.block_stride * spec.blocks;
  return view;
}

}  // namespace baton::device
