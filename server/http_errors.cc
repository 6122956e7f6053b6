// The table Errc -> HTTP status, and the JSON body of an error.
#include <boost/json.hpp>

#include "server/http_server.h"
#include "base/utf8.h"

namespace sluice::server {

unsigned http_status(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return 400;
    case Errc::not_found:
      return 404;
    case Errc::exists:
      return 409;
    case Errc::busy:
      return 409;
    case Errc::read_only:
      return 503;
    case Errc::corrupt:
      return 422;
    case Errc::no_space:
      return 507;
    case Errc::unsupported:
      return 501;
    case Errc::cancelled:
      return 503;
    case Errc::deadline:
      return 504;
    case Errc::unavailable:
      return 503;
    case Errc::too_large:
      return 413;
    case Errc::in_use:
      return 409;
    case Errc::io:
    case Errc::position:
    case Errc::protocol:
    case Errc::stale_epoch:
    case Errc::internal:
      return 500;
  }
  return 500;
}

HttpResponse error_response(unsigned status, std::string_view code, std::string_view message) {
  HttpResponse response;
  response.status = status;
  const boost::json::object body{{"code", code}, {"message", clean_utf8(message)}};
  response.body = boost::json::serialize(body) + "\n";
  return response;
}

HttpResponse error_response(const Error& error) {
  return error_response(http_status(error.code), errc_name(error.code), error.message);
}

}  // namespace sluice::server
