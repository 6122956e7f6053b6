// The helper's side of index_helper.h.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <vector>

#include "storage/apply/index_helper.h"

namespace sluice::storage::apply {
namespace {

class Server {
 public:
  explicit Server(int socket) : socket_(socket), pages_(kIndexPagesAtOnce) {}

  int run() {
    IndexRequest request;
    UniqueFd fd;
    std::size_t pages = 0;
    while (receive(request, pages, fd)) {
      const Result<void> done = pages == expected(request) ? perform(request, std::move(fd))
                                                           : make_error(Errc::protocol, "a message of the wrong length");
      if (!answer(done)) return 1;
    }
    return 0;
  }

 private:
  struct OpenFile {
    UniqueFd fd;
    IndexBlocks blocks;
  };

  static std::size_t expected(const IndexRequest& request) {
    return request.op == IndexOp::append || request.op == IndexOp::publish ? request.count : 0;
  }

  // False: the node has ended, or talks nonsense.
  bool receive(IndexRequest& request, std::size_t& pages, UniqueFd& fd) {
    std::array<iovec, 2> parts{{{&request, sizeof request}, {pages_.data(), pages_.size() * sizeof(std::uint32_t)}}};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t n = 0;
    do {
      n = ::recvmsg(socket_, &message, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < static_cast<ssize_t>(sizeof request) || (message.msg_flags & MSG_TRUNC) != 0) return false;
    pages = (static_cast<std::size_t>(n) - sizeof request) / sizeof(std::uint32_t);
    fd.reset();
    const cmsghdr* head = CMSG_FIRSTHDR(&message);
    if (head != nullptr && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(head), sizeof received);
      fd = UniqueFd(received);
    }
    return true;
  }

  Result<void> perform(const IndexRequest& request, UniqueFd fd) {
    if (request.op == IndexOp::forget) {
      files_.erase(request.file);
      return {};
    }
    OpenFile& file = files_[request.file];
    if (request.op == IndexOp::map) {
      if (fd) {
        file.blocks.clear();
        file.fd = std::move(fd);
      }
      if (!file.fd) return make_error(Errc::protocol, "a file without a descriptor");
      return file.blocks.map(file.fd.get(), request.count);
    }
    if (file.blocks.count() == 0 || request.stores > request.words.size() / 2) {
      return make_error(Errc::protocol, "a file that is not mapped, or too many stores");
    }
    std::array<IndexStore, std::tuple_size_v<decltype(request.words)> / 2> stores{};
    for (std::uint32_t i = 0; i < request.stores; ++i) {
      if (request.words[2 * i] > static_cast<std::uint32_t>(IndexWord::backfill_attempted)) {
        return make_error(Errc::protocol, "an unknown word");
      }
      stores.at(i) = {static_cast<IndexWord>(request.words[2 * i]), request.words[2 * i + 1]};
    }
    const std::span<const std::uint32_t> pages = std::span(pages_).first(expected(request));
    const std::span<const IndexStore> words = std::span(stores).first(request.stores);
    switch (request.op) {
      case IndexOp::append: return file.blocks.append(request.first, pages);
      case IndexOp::publish: return publish_in(file.blocks, request.first, pages, request.header, words);
      case IndexOp::store: store_in(file.blocks, words); return {};
      case IndexOp::erase: erase_header_in(file.blocks); return {};
      default: return make_error(Errc::protocol, "an unknown request");
    }
  }

  bool answer(const Result<void>& done) const {
    IndexReply reply;
    if (done.has_error()) {
      reply.code = static_cast<std::uint32_t>(done.error().code);
      done.error().message.copy(reply.message.data(), reply.message.size() - 1);
    }
    ssize_t n = 0;
    do {
      n = ::send(socket_, &reply, sizeof reply, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n == static_cast<ssize_t>(sizeof reply);
  }

  const int socket_;
  std::vector<std::uint32_t> pages_;
  std::map<std::uint32_t, OpenFile> files_;
};

}  // namespace

int serve_index_helper(int socket) { return Server(socket).run(); }

}  // namespace sluice::storage::apply
