// The parsers of single values: durations, sizes, addresses, commands, environment references.
#include <arpa/inet.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "server/config.h"

namespace sluice::server {
namespace {

bool is_name_start(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

std::string_view take_name(std::string_view& text) {
  std::size_t n = 0;
  if (!text.empty() && is_name_start(text[0])) {
    while (n < text.size() && is_name(text[n])) ++n;
  }
  const std::string_view name = text.substr(0, n);
  text.remove_prefix(n);
  return name;
}

using Lookup = std::function<std::optional<std::string>(const std::string&)>;

// The inside of ${…}; nothing if it is not one of the forms.
std::optional<std::string> expand_braces(std::string_view inside, const Lookup& lookup) {
  std::string_view rest = trim(inside);
  const std::string name(take_name(rest));
  if (name.empty()) return std::nullopt;
  const std::string left = lookup(name).value_or("");
  rest = trim(rest);
  if (rest.empty()) return left;
  const bool equal = rest.starts_with("==");
  if (!equal && !rest.starts_with("!=")) return std::nullopt;
  rest = trim(rest.substr(2));
  std::string right;
  if (rest.size() >= 2 && (rest.front() == '\'' || rest.front() == '"') && rest.back() == rest.front()) {
    right = rest.substr(1, rest.size() - 2);
  } else {
    const std::string other(take_name(rest));
    if (other.empty() || !trim(rest).empty()) return std::nullopt;
    right = lookup(other).value_or("");
  }
  return (left == right) == equal ? "true" : "false";
}

Result<std::uint16_t> parse_port(std::string_view text, std::string_view whole) {
  unsigned port = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (code != std::errc() || end != text.data() + text.size() || port > 65535) {
    return make_error(Errc::invalid_argument, "'" + std::string(whole) + "' needs a port from 0 to 65535");
  }
  return static_cast<std::uint16_t>(port);
}

}  // namespace

std::string expand_environment(std::string_view text, const Lookup& lookup) {
  std::string out;
  while (!text.empty()) {
    const std::size_t dollar = text.find('$');
    out += text.substr(0, dollar);
    if (dollar == std::string_view::npos) break;
    text.remove_prefix(dollar + 1);
    if (text.starts_with("{")) {
      const std::size_t close = text.find('}');
      const auto value =
          close == std::string_view::npos ? std::nullopt : expand_braces(text.substr(1, close - 1), lookup);
      if (value) {
        out += *value;
        text.remove_prefix(close + 1);
        continue;
      }
    } else if (const std::string name(take_name(text)); !name.empty()) {
      out += lookup(name).value_or("");
      continue;
    }
    out += '$';
  }
  return out;
}

std::optional<std::int64_t> parse_duration_ms(std::string_view text) {
  text = trim(text);
  const bool negative = text.starts_with("-");
  if (negative || text.starts_with("+")) text.remove_prefix(1);
  if (text == "0") return 0;
  if (text.empty()) return std::nullopt;
  double total_ms = 0;
  while (!text.empty()) {
    double value = 0;
    const auto [end, code] =
        std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
    if (code != std::errc() || value < 0) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    std::size_t n = 0;
    while (n < text.size() && std::isalpha(static_cast<unsigned char>(text[n])) != 0) ++n;
    const std::string_view unit = text.substr(0, n);
    text.remove_prefix(n);
    double scale = 0;
    if (unit == "ms")
      scale = 1;
    else if (unit == "s")
      scale = 1000;
    else if (unit == "m")
      scale = 60'000;
    else if (unit == "h")
      scale = 3'600'000;
    else
      return std::nullopt;
    total_ms += value * scale;
  }
  if (!(total_ms < 1e15)) return std::nullopt;
  const auto ms = static_cast<std::int64_t>(std::llround(total_ms));
  return negative ? -ms : ms;
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  text = trim(text);
  std::uint64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc()) return std::nullopt;
  std::string unit(trim(text.substr(static_cast<std::size_t>(end - text.data()))));
  std::uint64_t scale = 1;
  if (!unit.empty() && unit != "B") {
    const bool binary = unit.ends_with("iB");
    if (!binary && !unit.ends_with("B")) return std::nullopt;
    const std::string prefix = unit.substr(0, unit.size() - (binary ? 2 : 1));
    const std::size_t power = std::string_view("KMGT").find(prefix);
    if (prefix.size() != 1 || power == std::string_view::npos) return std::nullopt;
    for (std::size_t i = 0; i <= power; ++i) scale *= binary ? 1024 : 1000;
  }
  if (value > std::numeric_limits<std::uint64_t>::max() / scale) return std::nullopt;
  return value * scale;
}

std::optional<bool> parse_bool(std::string_view text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return std::nullopt;
}

std::optional<std::vector<std::string>> split_command(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == '\'') {
      if (c == quote)
        quote = 0;
      else
        word += c;
    } else if (c == '\\' && i + 1 < text.size()) {
      const char next = text[++i];
      if (quote == '"' && next != '"' && next != '\\' && next != '$' && next != '`') word += c;
      word += next;
      in_word = true;
    } else if (quote == '"') {
      if (c == quote)
        quote = 0;
      else
        word += c;
    } else if (c == '\'' || c == '"') {
      quote = c;
      in_word = true;
    } else if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      if (in_word) words.push_back(std::exchange(word, {}));
      in_word = false;
    } else {
      word += c;
      in_word = true;
    }
  }
  if (quote != 0) return std::nullopt;
  if (in_word) words.push_back(std::move(word));
  return words;
}

bool HostPort::loopback() const {
  in_addr v4{};
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  return host == "localhost" || host == "::1";
}

Result<HostPort> parse_host_port(std::string_view text) {
  const std::string whole(text);
  HostPort result;
  if (text.starts_with("[")) {
    const std::size_t close = text.find("]:");
    if (close == std::string_view::npos) {
      return make_error(Errc::invalid_argument, "'" + whole + "' is not [address]:port");
    }
    result.host = text.substr(1, close - 1);
    text.remove_prefix(close + 2);
  } else {
    const std::size_t colon = text.rfind(':');
    if (colon == std::string_view::npos || text.find(':') != colon) {
      return make_error(Errc::invalid_argument, "'" + whole + "' is not host:port");
    }
    result.host = text.substr(0, colon);
    text.remove_prefix(colon + 1);
  }
  TRY_ASSIGN(result.port, parse_port(text, whole));
  return result;
}

Result<HostPort> parse_http_url(std::string_view url) {
  const std::string whole(url);
  if (url.starts_with("https://")) {
    return make_error(Errc::unsupported,
                      "'" + whole + "': TLS is not available yet, use http:// on a trusted network");
  }
  if (!url.starts_with("http://")) {
    return make_error(Errc::invalid_argument, "'" + whole + "' is not a URL of the form http://host:port");
  }
  url.remove_prefix(7);
  if (url.ends_with("/")) url.remove_suffix(1);
  if (url.empty() || url.find_first_of("/?#@ ") != std::string_view::npos) {
    return make_error(Errc::invalid_argument, "'" + whole + "' is not a URL of the form http://host:port");
  }
  const std::size_t last_colon = url.rfind(':');
  const bool has_port =
      last_colon != std::string_view::npos && (url.front() != '[' || url[last_colon - 1] == ']');
  TRY_ASSIGN(HostPort result, parse_host_port(has_port ? std::string(url) : std::string(url) + ":80"));
  if (result.host.empty()) {
    return make_error(Errc::invalid_argument, "'" + whole + "' names no host");
  }
  return result;
}

}  // namespace sluice::server
