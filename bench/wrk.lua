-- Images as raw bodies, and what becomes of them: for bench/wrk.py. Arguments: the images' files.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  requests, statuses, queued, overheads = {}, {}, {}, {}
  for _, path in ipairs(arguments) do
    local file = assert(io.open(path, "rb"))
    local headers = {["Content-Type"] = "image/jpeg"}
    table.insert(requests, wrk.format("POST", "/segment", headers, file:read("*a")))
    file:close()
  end
  turn = 0
end

function request()
  turn = turn + 1
  return requests[turn % #requests + 1]
end

function response(status, headers)
  local key = tostring(status)
  statuses[key] = (statuses[key] or 0) + 1
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

function done(summary, latency)
  local thread = threads[1]
  local counts = {}
  for status, count in pairs(thread:get("statuses")) do
    table.insert(counts, string.format('"%s":%d', status, count))
  end
  print(string.format(
    'result {"seconds":%f,"p50":%f,"p99":%f,"statuses":{%s},"queued":%s,"overheads":%s,"errors":%d}',
    summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    table.concat(counts, ","), list(thread:get("queued")), list(thread:get("overheads")),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
