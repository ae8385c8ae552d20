// The little JSON that the library writes about itself, for cnnkernels/_C.py to read.
#pragma once

#include <string>
#include <vector>

namespace cnnkernels::json {

// For text without quotes, backslashes and control characters: names and our own sentences.
inline std::string quoted(const std::string& text) { return '"' + text + '"'; }

inline std::string joined(const std::vector<std::string>& parts) {
  std::string list;
  for (const std::string& part : parts) list += (list.empty() ? "" : ", ") + part;
  return list;
}

inline std::string array(const std::vector<std::string>& items) {
  return "[" + joined(items) + "]";
}

inline std::string strings(std::vector<std::string> texts) {
  for (std::string& text : texts) text = json::quoted(text);
  return array(texts);
}

inline std::string optional(const char* text) {
  return text == nullptr ? "null" : json::quoted(text);
}

// Of members such as "\"key\": 1".
inline std::string object(const std::vector<std::string>& members) {
  return "{" + joined(members) + "}";
}

inline std::string member(const std::string& key, const std::string& value) {
  return quoted(key) + ": " + value;
}

}  // namespace cnnkernels::json
