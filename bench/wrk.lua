-- Images as raw bodies, and what becomes of them: for bench/wrk.py. Arguments: the images' files, each to be sent to
-- the URL's path; "header:NAME=VALUE", to be sent too; "count:WORD", whose occurrences in each answer are counted.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  requests, statuses, words, queued, overheads = {}, {}, {}, {}, {}
  local headers = {["Content-Type"] = "image/jpeg"}
  for _, argument in ipairs(arguments) do
    local name, value = argument:match("^header:([^=]+)=(.*)$")
    if name then
      headers[name] = value
    end
    word = argument:match("^count:(.+)$") or word
  end
  for _, path in ipairs(arguments) do
    if not path:match("^%a+:") then
      local file = assert(io.open(path, "rb"))
      table.insert(requests, wrk.format("POST", nil, headers, file:read("*a")))
      file:close()
    end
  end
  turn = 0
end

function request()
  turn = turn + 1
  return requests[turn % #requests + 1]
end

function response(status, headers, body)
  local key = tostring(status)
  statuses[key] = (statuses[key] or 0) + 1
  if word and status == 200 then
    local _, count = body:gsub(word, "")
    words[tostring(count)] = (words[tostring(count)] or 0) + 1
  end
  local stages = {}
  for name, milliseconds in (headers["server-timing"] or ""):gmatch("(%w+);dur=([%d.]+)") do
    stages[name] = tonumber(milliseconds)
  end
  if stages.forward then
    table.insert(queued, stages.queue)
    table.insert(overheads, stages.total - stages.forward - stages.queue)
  end
end

local function list(values)
  return "[" .. table.concat(values, ",") .. "]"
end

local function object(counts)
  local parts = {}
  for key, count in pairs(counts) do
    table.insert(parts, string.format('"%s":%d', key, count))
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

function done(summary, latency)
  local thread = threads[1]
  print(string.format(
    'result {"seconds":%f,"p50":%f,"p99":%f,"statuses":%s,"words":%s,"queued":%s,"overheads":%s,"errors":%d}',
    summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    object(thread:get("statuses")), object(thread:get("words")),
    list(thread:get("queued")), list(thread:get("overheads")),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
