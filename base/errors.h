// The project's error type. One Errc for everything; fuse/, server/ and main translate it to errno, HTTP status
// and exit codes, each in one table.
#pragma once

#include <boost/system/result.hpp>
#include <string>
#include <string_view>

namespace sluice {

enum class Errc {
  invalid_argument,  ///< the caller's input is wrong: flag, config key, database name
  not_found,         ///< no such database, file, TXID
  exists,            ///< already there
  busy,              ///< locked by somebody else; trying again later may help
  read_only,         ///< this node is not the primary
  corrupt,           ///< bytes on disk or on the wire that fail their checks
  io,                ///< the operating system reported an error (see Error::sys_errno)
  no_space,          ///< ENOSPC or EDQUOT
  unsupported,       ///< the kernel, file system or peer cannot do this
  cancelled,         ///< stopped on request
  deadline,          ///< not finished in time
  unavailable,       ///< a peer cannot be reached, or closed the connection
  position,          ///< a change set does not follow the database's position
  protocol,          ///< a peer broke the protocol or speaks another version
  stale_epoch,       ///< from a primary whose reign is over
  too_large,         ///< over a stated limit
  in_use,            ///< data directory or database held by another process
  internal,          ///< a bug that was contained
};

/// Lower-case name of `code`, for logs and JSON.
std::string_view errc_name(Errc code);

/// What went wrong, where, and (where there is something to do) what to do. `message` is a whole sentence without
/// the final full stop.
struct Error {
  Errc code = Errc::internal;
  std::string message;
  int sys_errno = 0;  ///< errno, when the operating system reported it; else 0

  /// "io: write DATA/log/app.db/…seg: No space left on device"
  std::string to_string() const;
};

/// Boost.System calls this when value() is asked of a failed Result: a bug in the caller.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& where);

template <class T>
using Result = boost::system::result<T, Error>;

inline Error make_error(Errc code, std::string message) { return Error{code, std::move(message), 0}; }

/// An Error from errno; ENOSPC, ENOENT, EEXIST, EROFS get their own Errc. `what` names operation and file.
Error errno_error(std::string_view what, int err);

/// `error` with "context: " in front of its message.
Error with_context(std::string_view context, Error error);

}  // namespace sluice

// TRY(expr): return the error of a failed Result<…>, else go on.
// TRY_ASSIGN(auto x, expr): the same, and keep the value.
#define SLUICE_CONCAT_INNER(a, b) a##b
#define SLUICE_CONCAT(a, b) SLUICE_CONCAT_INNER(a, b)
#define TRY_INNER(tmp, expr)                              \
  do {                                                    \
    auto&& tmp = (expr);                                  \
    if (tmp.has_error()) return std::move(tmp).error();   \
  } while (false)
#define TRY(expr) TRY_INNER(SLUICE_CONCAT(try_result_, __COUNTER__), expr)
#define TRY_ASSIGN_INNER(tmp, decl, expr)             \
  auto&& tmp = (expr);                                \
  if (tmp.has_error()) return std::move(tmp).error(); \
  decl = std::move(*tmp)
#define TRY_ASSIGN(decl, expr) TRY_ASSIGN_INNER(SLUICE_CONCAT(try_assign_, __COUNTER__), decl, expr)
