#include "fuse/takeover/state.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"

namespace sluice::fuse::takeover {
namespace {

constexpr std::size_t kRequestsAt = 4096;
constexpr std::size_t kRenamesAt = kRequestsAt + sizeof(RequestRecord) * kMaxRequests;
constexpr std::size_t kOpensAt = 1u << 20;
constexpr std::size_t kNodesAt = kOpensAt + sizeof(OpenRecord) * kMaxOpens;
constexpr std::size_t kSize = kNodesAt + sizeof(NodeRecord) * std::size_t{kMaxNodes};
constexpr std::uint64_t kBeingNoted = ~std::uint64_t{0};
static_assert(sizeof(StateHeader) <= kRequestsAt && kRenamesAt + sizeof(RenameRecord) * kMaxRenames <= kOpensAt);

}  // namespace

Result<std::unique_ptr<State>> State::map(UniqueFd file) {
  void* memory = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
  if (memory == MAP_FAILED) return errno_error("map the takeover state", errno);
  return std::unique_ptr<State>(new State(std::move(file), Mapping(memory, kSize)));
}

Result<std::unique_ptr<State>> State::create() {
  UniqueFd file(::memfd_create("sluice-takeover", MFD_CLOEXEC));
  if (!file || ::ftruncate(file.get(), kSize) != 0) return errno_error("create the takeover state", errno);
  TRY_ASSIGN(auto state, map(std::move(file)));
  state->header().version = kLayoutVersion;
  state->header().generation = 1;
  in_order();
  state->header().magic = kMagic;
  return state;
}

Result<void> State::check(int file) {
  StateHeader header{};
  if (::pread(file, &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header) || header.magic != kMagic)
    return make_error(Errc::unsupported, "the takeover state is not Sluice's");
  if (header.version != kLayoutVersion)
    return make_error(Errc::unsupported,
                      fmt::format("the running node keeps its takeover state in layout {}, this program reads layout {}: "
                                  "stop the node and start the new program instead",
                                  header.version, kLayoutVersion));
  struct stat st {};
  if (::fstat(file, &st) != 0 || static_cast<std::size_t>(st.st_size) != kSize)
    return make_error(Errc::unsupported, "the takeover state has an unexpected size");
  if (header.init_reply_size == 0) return make_error(Errc::unsupported, "the node before was never mounted");
  return boost::system::in_place_value;
}

Result<std::unique_ptr<State>> State::adopt(UniqueFd file) {
  TRY(check(file.get()));
  TRY_ASSIGN(auto state, map(std::move(file)));
  ++state->header().generation;
  state->after_crash_ = state->header().suspect.exchange(0) != 0;
  state->forget_rename(kBeingNoted);
  return state;
}

NodeRecord& State::node(std::uint32_t slot) const {
  CHECK(slot < kMaxNodes);
  return reinterpret_cast<NodeRecord*>(memory_.data() + kNodesAt)[slot];
}

OpenRecord& State::open(std::uint32_t slot) const {
  CHECK(slot < kMaxOpens);
  return reinterpret_cast<OpenRecord*>(memory_.data() + kOpensAt)[slot];
}

std::span<RequestRecord> State::requests() const {
  return {reinterpret_cast<RequestRecord*>(memory_.data() + kRequestsAt), kMaxRequests};
}

std::span<RenameRecord> State::renames() const {
  return {reinterpret_cast<RenameRecord*>(memory_.data() + kRenamesAt), kMaxRenames};
}

void State::note_rename(std::uint64_t node, std::uint64_t new_parent, std::string_view new_name) {
  forget_rename(node);
  if (new_name.size() > kMaxName) return;
  for (RenameRecord& record : renames()) {
    std::uint64_t expected = 0;
    if (!record.node.compare_exchange_strong(expected, kBeingNoted)) continue;
    record.new_parent = new_parent;
    store_name(record.new_name, new_name);
    record.node.store(node, std::memory_order_release);
    return;
  }
}

void State::forget_rename(std::uint64_t node) {
  for (RenameRecord& record : renames()) {
    std::uint64_t expected = node;
    record.node.compare_exchange_strong(expected, 0);
  }
}

void store_name(NameRecord& record, std::string_view name) {
  CHECK(name.size() <= kMaxName);
  std::copy(name.begin(), name.end(), record.bytes.begin());
  record.size = static_cast<std::uint16_t>(name.size());
}

std::string_view load_name(const NameRecord& record) {
  return {record.bytes.data(), std::min<std::size_t>(record.size, kMaxName)};
}

}  // namespace sluice::fuse::takeover
