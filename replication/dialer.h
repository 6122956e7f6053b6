// Connects to a primary and asks for the stream: name lookup, TCP, HTTP upgrade. Loop thread only.
#pragma once

#include <sys/socket.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/async.h"
#include "base/bytes.h"
#include "base/errors.h"
#include "base/fd.h"

namespace sluice::replication {

struct Endpoint {
  std::string host;
  std::string port;
};

/// "http://host[:port][/]". Errc::invalid_argument says what is wrong; Errc::unsupported for https.
Result<Endpoint> parse_primary_url(const std::string& url);

/// Judges the head of the primary's answer ("HTTP/1.1 101 …" up to the empty line): the upgrade was granted, or an error
/// that says why not. Input is hostile.
Result<void> check_upgrade_answer(std::string_view head);

class Dialer : public std::enable_shared_from_this<Dialer> {
 public:
  struct Upgraded {
    UniqueFd socket;
    Bytes early;  ///< what came behind the answer's head
  };
  using Done = std::function<void(Result<Upgraded>)>;

  struct Address {
    sockaddr_storage bytes;
    socklen_t size;
  };
  using Addresses = std::vector<Address>;
  /// Blocks; called on a thread of its own.
  using Resolve = std::function<Result<Addresses>(const Endpoint&)>;

  /// `resolve`: the system's resolver if there is none.
  Dialer(EventLoop& loop, Endpoint endpoint, std::string token, Resolve resolve = {});
  ~Dialer();

  /// Calls `done` once, unless cancelled: with the socket, or an error within `timeout`. A name's addresses are tried one
  /// after the other; one that does not answer gets its share of the time, not all of it.
  void start(Duration timeout, Done done);
  void cancel();

 private:
  struct Impl;
  void resolve();
  void connect(std::size_t index);
  void send_request();
  void read_answer();
  void judge_answer(std::size_t head_size);
  void finish(Result<Upgraded> result);

  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::replication
