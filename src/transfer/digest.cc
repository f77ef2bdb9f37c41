#define XXH_INLINE_ALL
#include "transfer/digest.h"

#include <xxhash.h>

#include <cstdio>

#include "transfer/digest_isa.h"

namespace baton::transfer {
namespace {

static_assert(sizeof(XXH3_state_t) <= 640 && alignof(XXH3_state_t) <= 64);

void update_baseline(void* state, const void* bytes, std::size_t count) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state), bytes, count);
}

Digest from_xxh(XXH128_hash_t h) { return {h.high64, h.low64}; }

}  // namespace

Digester::Digester() : update_(update_baseline) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) update_ = digest_update_avx2;
#endif
  reset();
}

void Digester::reset() {
  auto* state = static_cast<XXH3_state_t*>(this->state());
  XXH3_INITSTATE(state);
  XXH3_128bits_reset(state);
}

Digest Digester::finish() const { return from_xxh(XXH3_128bits_digest(reinterpret_cast<const XXH3_state_t*>(storage_.data()))); }

std::string to_string(const Digest& digest) {
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(digest.high),
                static_cast<unsigned long long>(digest.low));
  return text;
}

Digest digest_ids(std::span<const TokenId> ids) { return from_xxh(XXH3_128bits(ids.data(), ids.size_bytes())); }

}  // namespace baton::transfer
