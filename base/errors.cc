#include "base/errors.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace sluice {

std::string_view errc_name(Errc code) {
  switch (code) {
    case Errc::invalid_argument: return "invalid argument";
    case Errc::not_found: return "not found";
    case Errc::exists: return "exists";
    case Errc::busy: return "busy";
    case Errc::read_only: return "read only";
    case Errc::corrupt: return "corrupt";
    case Errc::io: return "io";
    case Errc::no_space: return "no space";
    case Errc::unsupported: return "unsupported";
    case Errc::cancelled: return "cancelled";
    case Errc::deadline: return "deadline";
    case Errc::unavailable: return "unavailable";
    case Errc::position: return "position";
    case Errc::protocol: return "protocol";
    case Errc::stale_epoch: return "stale epoch";
    case Errc::too_large: return "too large";
    case Errc::in_use: return "in use";
    case Errc::internal: return "internal";
  }
  return "internal";
}

std::string Error::to_string() const { return std::string(errc_name(code)) + ": " + message; }

void throw_exception_from_error(const Error& error, const boost::source_location& where) {
  throw std::logic_error("value of a failed Result at " + where.to_string() + ": " + error.to_string());
}

Error errno_error(std::string_view what, int err) {
  Errc code = Errc::io;
  switch (err) {
    case ENOSPC:
    case EDQUOT: code = Errc::no_space; break;
    case ENOENT: code = Errc::not_found; break;
    case EEXIST: code = Errc::exists; break;
    case EROFS: code = Errc::read_only; break;
    default: break;
  }
  std::array<char, 128> buffer{};
  const char* text = strerror_r(err, buffer.data(), buffer.size());
  return Error{code, std::string(what) + ": " + text, err};
}

Error with_context(std::string_view context, Error error) {
  error.message = std::string(context) + ": " + error.message;
  return error;
}

}  // namespace sluice
