#include "storage/apply/incoming.h"

#include <algorithm>

namespace sluice::storage::apply {
namespace {

constexpr std::uint64_t kInMemory = std::uint64_t{1} << 20;
constexpr std::size_t kKeptBuffer = std::size_t{64} << 10;
constexpr std::size_t kPieceSize = std::size_t{1} << 20;

}  // namespace

void Incoming::begin(const IncomingChangeSet& head) {
  reset();
  head_ = head;
  active_ = true;
}

void Incoming::reset() {
  active_ = false;
  received_ = 0;
  memory_.clear();
  if (memory_.capacity() > kKeptBuffer) Bytes().swap(memory_);
  spool_.reset();
}

Result<void> Incoming::add(ByteView bytes) {
  if (bytes.size() > head_.length - received_) {
    return make_error(Errc::corrupt, fmt::format("change set {} is longer than the {} bytes announced", head_.post.txid,
                                                 head_.length));
  }
  if (head_.length <= kInMemory) {
    memory_.insert(memory_.end(), bytes.begin(), bytes.end());
  } else {
    if (!spool_) TRY(open_spool());
    TRY(spool_->write_at(received_, bytes));
  }
  received_ += bytes.size();
  return {};
}

Result<void> Incoming::open_spool() {
  TRY_ASSIGN(spool_, fs_.open(spool_path_, {.write = true, .create = true}));
  TRY(spool_->truncate(0));
  return fs_.unlink(spool_path_);
}

Result<void> Incoming::decode(ltx::PageVisitor visit) {
  if (received_ != head_.length) {
    return make_error(Errc::corrupt, fmt::format("change set {} ends after {} of {} bytes", head_.post.txid, received_,
                                                 head_.length));
  }
  const ltx::Source source = [this](std::uint64_t offset, ByteSpan out) -> Result<void> {
    if (!spool_) {
      if (offset > memory_.size() || out.size() > memory_.size() - offset) {
        return make_error(Errc::corrupt, "the image ends too early");
      }
      std::copy_n(memory_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
      return {};
    }
    TRY_ASSIGN(const std::size_t n, spool_->read_at(offset, out));
    if (n != out.size()) return make_error(Errc::corrupt, "the image ends too early");
    return {};
  };
  const auto visit_announced = [&](Pgno pgno, ByteView page) -> Result<void> {
    if (page.size() != head_.page_size) return make_error(Errc::corrupt, "the image has another page size than announced");
    return visit(pgno, page);
  };
  TRY_ASSIGN(const ltx::Decoded decoded, ltx::decode(source, head_.length, visit_announced));
  return check_header(decoded);
}

// I4: what is inside must be what was announced, or a frame of another database or position would pass by its own checksum.
Result<void> Incoming::check_header(const ltx::Decoded& decoded) const {
  const ltx::Header& header = decoded.header;
  const auto wrong = [this](std::string_view what) {
    return make_error(Errc::corrupt, fmt::format("change set {}: its {} is not what was announced", head_.post.txid, what));
  };
  if (header.no_checksum()) return make_error(Errc::corrupt, "a change set without checksums cannot be applied");
  if (header.min_txid != head_.pre.txid.next() || header.max_txid != head_.post.txid) return wrong("TXID range");
  if (header.page_size != head_.page_size) return wrong("page size");
  if (header.commit != head_.commit) return wrong("commit size");
  const std::uint64_t pre = header.is_snapshot() ? 0 : head_.pre.checksum.value();
  if (header.pre_apply_checksum != pre) return wrong("pre-apply checksum");
  if (decoded.trailer.post_apply_checksum != head_.post.checksum.value()) return wrong("post-apply checksum");
  return {};
}

Result<void> Incoming::copy_to(FunctionRef<Result<void>(ByteView)> sink) {
  if (!spool_) return sink(memory_);
  Bytes piece(kPieceSize);
  for (std::uint64_t at = 0; at < received_;) {
    const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), received_ - at));
    TRY_ASSIGN(const std::size_t got, spool_->read_at(at, ByteSpan(piece).first(n)));
    if (got != n) return make_error(Errc::io, spool_path_ + " became shorter");
    TRY(sink(ByteView(piece).first(n)));
    at += n;
  }
  return {};
}

}  // namespace sluice::storage::apply
