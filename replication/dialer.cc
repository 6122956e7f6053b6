#include "replication/dialer.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/algorithm/string/predicate.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/write.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/url_view.hpp>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace sluice::replication {

namespace asio = boost::asio;
using asio::generic::stream_protocol;

namespace {

constexpr std::size_t kMaxHead = 16 * 1024;
constexpr std::string_view kHeadEnd = "\r\n\r\n";

using Addresses = Dialer::Addresses;

// getaddrinfo cannot be cancelled and may take as long as the name servers like, so nobody waits for its thread; it
// only holds this, and finds out there whether the answer is still wanted.
struct Lookup {
  Mutex mutex;
  std::function<void(Result<Addresses>)> done GUARDED_BY(mutex);
};

Result<Addresses> look_up(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int code = ::getaddrinfo(endpoint.host.c_str(), endpoint.port.c_str(), &hints, &list);
  if (code != 0) {
    return make_error(Errc::unavailable, fmt::format("host {} is not known: {}", endpoint.host, gai_strerror(code)));
  }
  Addresses all;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    Dialer::Address address{};
    std::memcpy(&address.bytes, entry->ai_addr, entry->ai_addrlen);
    address.size = entry->ai_addrlen;
    all.push_back(address);
  }
  ::freeaddrinfo(list);
  return all;
}

std::string_view line_of(std::string_view& text) {
  const std::size_t end = text.find("\r\n");
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 2);
  return line;
}

// For messages and logs: what a stranger sent is not put on the terminal as it is.
std::string printable(std::string_view text) {
  std::string out(text.substr(0, 200));
  std::replace_if(out.begin(), out.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return out;
}

}  // namespace

Result<Endpoint> parse_primary_url(const std::string& url) {
  const auto parsed = boost::urls::parse_uri(url);
  if (!parsed) return make_error(Errc::invalid_argument, fmt::format("{} is not a URL such as http://host:20202", url));
  if (parsed->scheme() == "https") return make_error(Errc::unsupported, url + ": only http is supported");
  // Boost 1.81 takes a port that is no number as it is.
  const bool bad_port = parsed->has_port() && !parsed->port().empty() && parsed->port_number() == 0;
  if (parsed->scheme() != "http" || parsed->host().empty() || bad_port) {
    return make_error(Errc::invalid_argument, fmt::format("{} is not a URL such as http://host:20202", url));
  }
  if (!parsed->path().empty() && parsed->path() != "/") {
    return make_error(Errc::invalid_argument, url + ": a primary URL has no path");
  }
  if (parsed->has_userinfo() || parsed->has_query()) {
    return make_error(Errc::invalid_argument, url + ": only host and port are wanted");
  }
  Endpoint endpoint;
  endpoint.host = parsed->host_address();
  endpoint.port = !parsed->port().empty() ? std::string(parsed->port()) : "20202";
  return endpoint;
}

Result<void> check_upgrade_answer(std::string_view head) {
  const std::string_view status = line_of(head);
  if (!status.starts_with("HTTP/1.1 ")) {
    return make_error(Errc::protocol, fmt::format("the peer does not speak HTTP: \"{}\"", printable(status)));
  }
  if (!status.starts_with("HTTP/1.1 101")) {
    const std::string_view reason = status.substr(9);
    if (reason.starts_with("401") || reason.starts_with("403")) {
      return make_error(Errc::unavailable, fmt::format("the primary refuses this node's token ({})", printable(reason)));
    }
    return make_error(Errc::unavailable, fmt::format("the primary refuses the stream: {}", printable(reason)));
  }
  while (!head.empty()) {
    const std::string_view line = line_of(head);
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || !boost::algorithm::iequals(line.substr(0, colon), "Upgrade")) continue;
    std::string_view value = line.substr(colon + 1);
    while (value.starts_with(' ')) value.remove_prefix(1);
    if (boost::algorithm::iequals(value, "sluice")) return {};
  }
  return make_error(Errc::protocol, "the peer switched to another protocol than sluice");
}

struct Dialer::Impl {
  Impl(EventLoop& event_loop, Endpoint where, std::string secret, Resolve resolver)
      : loop(event_loop), endpoint(std::move(where)), token(std::move(secret)), resolve(std::move(resolver)),
        socket(event_loop.context()), deadline(event_loop), share(event_loop) {}

  EventLoop& loop;
  const Endpoint endpoint;
  const std::string token;
  const Resolve resolve;
  stream_protocol::socket socket;
  Timer deadline;
  Timer share;  ///< of the address that is being tried
  MonotonicTime until{};
  std::size_t trying = 0;  ///< which address
  Done done;  // empty: finished
  std::shared_ptr<Lookup> lookup;
  std::vector<stream_protocol::endpoint> endpoints;
  std::string request;
  std::string answer;
  std::array<char, 4096> buffer{};

  std::string where() const { return endpoint.host + ":" + endpoint.port; }
};

Dialer::Dialer(EventLoop& loop, Endpoint endpoint, std::string token, Resolve resolve)
    : impl_(std::make_unique<Impl>(loop, std::move(endpoint), std::move(token),
                                   resolve ? std::move(resolve) : Resolve(look_up))) {}

Dialer::~Dialer() { cancel(); }

void Dialer::start(Duration timeout, Done done) {
  impl_->done = std::move(done);
  impl_->until = std::chrono::steady_clock::now() + timeout;
  impl_->deadline.start(timeout, [this] {
    finish(make_error(Errc::deadline, fmt::format("{} did not answer in time", impl_->where())));
  });
  resolve();
}

void Dialer::cancel() {
  impl_->done = nullptr;
  impl_->deadline.cancel();
  impl_->share.cancel();
  if (impl_->lookup) {
    MutexLock lock(impl_->lookup->mutex);
    impl_->lookup->done = nullptr;
  }
  boost::system::error_code ignored;
  impl_->socket.close(ignored);
}

void Dialer::finish(Result<Upgraded> result) {
  if (!impl_->done) return;
  const auto self = shared_from_this();
  const Done done = std::exchange(impl_->done, nullptr);
  cancel();
  done(std::move(result));
}

void Dialer::resolve() {
  impl_->lookup = std::make_shared<Lookup>();
  {
    MutexLock lock(impl_->lookup->mutex);
    // Called under the lookup's mutex: cancel(), and with it the end of the loop, waits for that.
    impl_->lookup->done = [weak = weak_from_this(), &loop = impl_->loop](Result<Addresses> found) {
      loop.post([weak, found = std::move(found)] {
        const auto self = weak.lock();
        if (!self || !self->impl_->done) return;
        if (found.has_error()) return self->finish(found.error());
        for (const Address& address : *found) self->impl_->endpoints.emplace_back(&address.bytes, address.size);
        self->connect(0);
      });
    };
  }
  std::thread([lookup = impl_->lookup, endpoint = impl_->endpoint, resolve = impl_->resolve] {
    auto found = resolve(endpoint);
    MutexLock lock(lookup->mutex);
    if (lookup->done) lookup->done(std::move(found));
  }).detach();
}

void Dialer::connect(std::size_t index) {
  if (index >= impl_->endpoints.size()) {
    return finish(make_error(Errc::unavailable, fmt::format("host {} has no address", impl_->endpoint.host)));
  }
  boost::system::error_code ignored;
  impl_->socket.close(ignored);
  impl_->trying = index;
  const std::size_t left = impl_->endpoints.size() - index;
  if (left > 1) {
    const Duration all = impl_->until - std::chrono::steady_clock::now();
    impl_->share.start(std::max<Duration>(all / left, Duration::zero()), [this, index] { connect(index + 1); });
  }
  // Asio's own sockets would be inherited by the application that runs beside this node, and outlive it there.
  const auto& endpoint = impl_->endpoints[index];
  UniqueFd fd(::socket(endpoint.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  impl_->socket.assign(endpoint.protocol(), fd.get(), ignored);
  if (!ignored) fd.release();
  impl_->socket.async_connect(
      impl_->endpoints[index],
      [self = shared_from_this(), index](const boost::system::error_code& error) {
        if (!self->impl_->done || self->impl_->trying != index) return;
        self->impl_->share.cancel();
        if (!error) return self->send_request();
        if (index + 1 < self->impl_->endpoints.size()) return self->connect(index + 1);
        self->finish(make_error(Errc::unavailable,
                                fmt::format("cannot connect to {}: {}", self->impl_->where(), error.message())));
      });
}

void Dialer::send_request() {
  impl_->request = fmt::format(
      "GET /v1/stream HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: sluice\r\nSluice-Protocol: 1\r\n",
      impl_->where());
  if (!impl_->token.empty()) impl_->request += "Authorization: Bearer " + impl_->token + "\r\n";
  impl_->request += "\r\n";
  asio::async_write(impl_->socket, asio::buffer(impl_->request),
                    [self = shared_from_this()](const boost::system::error_code& error, std::size_t) {
                      if (!self->impl_->done) return;
                      if (!error) return self->read_answer();
                      self->finish(make_error(Errc::unavailable, fmt::format("{}: {}", self->impl_->where(),
                                                                             error.message())));
                    });
}

void Dialer::read_answer() {
  impl_->socket.async_read_some(
      asio::buffer(impl_->buffer),
      [self = shared_from_this()](const boost::system::error_code& error, std::size_t bytes) {
        Impl& impl = *self->impl_;
        if (!impl.done) return;
        if (error) {
          return self->finish(make_error(Errc::unavailable, fmt::format("{} closed the connection before it answered",
                                                                        impl.where())));
        }
        impl.answer.append(impl.buffer.data(), bytes);
        const std::size_t end = impl.answer.find(kHeadEnd);
        if (end != std::string::npos) return self->judge_answer(end + kHeadEnd.size());
        if (impl.answer.size() > kMaxHead) {
          return self->finish(make_error(Errc::protocol, impl.where() + " sent an endless HTTP answer"));
        }
        self->read_answer();
      });
}

void Dialer::judge_answer(std::size_t head_size) {
  const auto granted = check_upgrade_answer(std::string_view(impl_->answer).substr(0, head_size));
  if (granted.has_error()) return finish(with_context(impl_->where(), granted.error()));
  boost::system::error_code error;
  UniqueFd socket(impl_->socket.release(error));
  if (error) return finish(make_error(Errc::internal, "taking over the socket: " + error.message()));
  const ByteView early = as_bytes(std::string_view(impl_->answer).substr(head_size));
  Upgraded upgraded{std::move(socket), Bytes(early.begin(), early.end())};
  finish(std::move(upgraded));
}

}  // namespace sluice::replication
