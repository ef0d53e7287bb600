-- Shared by all scripts of the ledger; put in front of each of them.
-- ARGV[1]: key prefix. ARGV[2]: the pointer template. A script's own arguments begin at ARGV[3].
--
-- A record (hash record:<id>) holds one accepted chunk:
--   version, requests, count   what was submitted, one request a line, and how many prompts it is
--   lane                       the lane it is queued in
--   turn                       the place of its first prompt in the lane's order, see turns.lua
--   submitter                  who shares the lane with others, if it was named; else it is `reply`
--   open                       positions that nobody holds; answered ones may still be among them
--   claim:<token>              positions that the holder of this token works on; its lease is in `leases`
--   alone:<token>              only for a claim of one prompt that has to run alone: 'waiting' or 'running'
--   lost                       set when a worker was lost with prompts of this record in its engine
--   lost:<position>            a line for each of these workers: when | claim | alone or beside | why
--   reply                      the submitter's reply stream, or ''
--   stream                     set if somebody may read its texts while they are made, see emit.lua
--   entered, deadline, ttl     broker's microseconds, the same, seconds that answers are kept
--   keep, head, tail           only for plain Celery calls, see enter.lua

local prefix, template = ARGV[1], ARGV[2]

-- How long answers wait in the stream of a client that reads nothing, in seconds; where they are kept they stay longer.
local REPLIES_S = 600

-- How long the pieces of a streamed text stay after the last of them, in seconds; the answer stays longer.
local STREAM_S = 600
-- The most entries of one stream, about: where older ones went, its readers wait for the answer.
local STREAM_ENTRIES = 20000

local function key(name) return prefix .. name end

-- A broker at its maxmemory refuses a script's writes unless it has written already: what ends work must always go on.
local function write_even_when_full() redis.call('DEL', key('none')) end

-- Lua would print a large number as 1.79e+15.
local function text(number) return string.format('%.0f', number) end

-- The same for a number with a fraction.
local function exact(number) return string.format('%.15g', number) end

-- The broker's time in microseconds.
local function broker_time()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The same as a clock, which never stands still and never goes back.
local function clock()
  local last = tonumber(redis.call('GET', key('clock')) or '0')
  local now = math.max(broker_time(), last + 1)
  redis.call('SET', key('clock'), text(now))
  return now
end

local function split(positions)
  local list = {}
  for position in string.gmatch(positions or '', '%d+') do list[#list + 1] = position end
  return list
end

local function join(list) return table.concat(list, ' ') end

-- Calls `command` with the values of `list`, in parts: Lua can pass no more than some 8,000 at once.
local function in_parts(list, command)
  for from = 1, #list, 4000 do command(unpack(list, from, math.min(from + 3999, #list))) end
end

-- Those of `positions` that have no answer yet.
local function unanswered(id, positions)
  local left = {}
  in_parts(positions, function(...)
    local found = redis.call('HMGET', key('answers:' .. id), ...)
    for i, position in ipairs({...}) do
      if not found[i] then left[#left + 1] = position end
    end
  end)
  return left
end

local function queue_and_priority(lane)
  return string.match(lane, '^(.*)|(%d+)$')
end

-- The list in which Celery's transport keeps one priority of a queue.
local function list_of(lane)
  local queue, priority = queue_and_priority(lane)
  if priority == '0' then return queue end
  return queue .. '\6\22' .. priority
end

-- The lane of what is queued again: a queue of its own that workers look at first. The model's own queue won't do: foreign
-- calls without a priority go to its front, and a thousand of them would keep a dead worker's prompts waiting.
local function again_lane(lane)
  local queue = queue_and_priority(lane)
  if string.sub(queue, -6) ~= ':again' then queue = queue .. ':again' end
  return queue .. '|0'
end

local function is_again_lane(lane) return again_lane(lane) == lane end

local function leave_lane(id)
  local lane = redis.call('HGET', key('record:' .. id), 'lane')
  if not lane then return end
  redis.call('ZREM', key('lane:' .. lane), id)
  redis.call('ZREM', key('turns:' .. lane), id)
end

-- A record ends unserved, in whole or in part: its submitter's next ones are not to wait for what never came. (They may
-- go before one that came between, then.)
local function give_up_turn(id)
  local lane, submitter, reply, open =
    unpack(redis.call('HMGET', key('record:' .. id), 'lane', 'submitter', 'reply', 'open'))
  if not lane or not redis.call('ZSCORE', key('turns:' .. lane), id) then return end
  local ends, name = key('ends:' .. lane), submitter or reply
  local reach = redis.call('ZSCORE', ends, name)
  if reach then redis.call('ZADD', ends, exact(reach - #split(open)), name) end
end

-- Puts a record into a lane of the ledger, without a pointer.
local function join_lane(id, lane, now)
  leave_lane(id)
  redis.call('HSET', key('record:' .. id), 'lane', lane)
  redis.call('ZADD', key('lane:' .. lane), text(now), id)
  redis.call('SADD', key('lanes'), lane)
  local turn, open = unpack(redis.call('HMGET', key('record:' .. id), 'turn', 'open'))
  if not turn or is_again_lane(lane) then return end
  redis.call('ZADD', key('turns:' .. lane), exact(turn + (string.match(open or '', '%d+') or 0)), id)
end

-- Puts a record into a lane and publishes its pointer: in one script, so that neither is there without the other.
local function queue_up(id, lane, now)
  join_lane(id, lane, now)
  local record = redis.call('HMGET', key('record:' .. id), 'head', 'tail', 'open')
  local queue, priority = queue_and_priority(lane)
  -- Hashed, since a plain call's id may hold anything; unique, since a script queues a record up once.
  local tag = redis.sha1hex(id .. ':' .. text(now))
  local message
  if record[1] then
    message = record[1] .. tag .. record[2]
  else
    message = string.gsub(template, '@(%l+)@', {
      id = id, tag = tag, queue = queue, priority = priority, lane = lane, score = text(now),
      count = #split(record[3]),
    })
  end
  redis.call('LPUSH', list_of(lane), message)
end

-- The record of a claim's token, and the worker process that holds it: <record>/<number>.<run>@<worker>.
local function record_of(token) return string.match(token, '^(.*)/[^/]*$') end
local function claim_of(token) return string.match(token, '([^/]*)$') end
local function worker_of(token) return string.match(claim_of(token), '^%d+%.(.*)$') or claim_of(token) end

local function end_claim(id, token)
  redis.call('ZREM', key('leases'), token)
  redis.call('HDEL', key('granted'), claim_of(token))
  redis.call('HDEL', key('record:' .. id), 'claim:' .. token, 'alone:' .. token)
end

local function end_claims(id)
  for _, field in ipairs(redis.call('HKEYS', key('record:' .. id))) do
    local token = string.match(field, '^claim:(.+)$')
    if token then end_claim(id, token) end
  end
end

-- The model's queue, of whatever lane.
local function model_queue(lane) return (string.gsub(queue_and_priority(lane), ':again$', '')) end

-- Prompts that a model's queue and its workers hold, by queue; and those that ever came and ended, for rates.
local function count_prompts(lane, number)
  local queue = model_queue(lane)
  redis.call('HINCRBY', key('totals'), queue .. (number > 0 and '|entered' or '|ended'), text(math.abs(number)))
  if redis.call('HINCRBY', key('prompts'), queue, number) <= 0 then redis.call('HDEL', key('prompts'), queue) end
end

-- Ends a record and all that points to it; answers stay for their time, which begins now: were it to begin at the
-- first answer, that one could be gone before a long chunk is complete.
local function drop(id)
  local record = key('record:' .. id)
  end_claims(id)
  give_up_turn(id)
  leave_lane(id)
  redis.call('ZREM', key('deadlines'), id)
  local ttl, lane, count = unpack(redis.call('HMGET', record, 'ttl', 'lane', 'count'))
  if not ttl then return end
  redis.call('EXPIRE', key('answers:' .. id), ttl)
  count_prompts(lane, -count)
  redis.call('DEL', record)
end

-- Ends a record whose last answer came from outside (cancelled, expired). A plain call's is queued once more instead:
-- only a worker can hand its answer to Celery. That, too, has an end: as long as the answer would be kept.
local function conclude(id, now)
  local record = key('record:' .. id)
  local keep, ttl, lane = unpack(redis.call('HMGET', record, 'keep', 'ttl', 'lane'))
  if keep ~= '1' then return drop(id) end
  end_claims(id)
  local deadline = text(now + ttl * 1000000)
  redis.call('HSET', record, 'open', '0', 'deadline', deadline)
  redis.call('ZADD', key('deadlines'), deadline, id)
  queue_up(id, again_lane(lane), now)
end

local function is_complete(id)
  local count = tonumber(redis.call('HGET', key('record:' .. id), 'count'))
  return redis.call('HLEN', key('answers:' .. id)) >= count
end

-- Nothing is queued in the lane any more.
local function forget_turns(lane)
  redis.call('DEL', key('turns:' .. lane), key('ends:' .. lane))
  for _, name in ipairs({'lane_time', 'served', 'lifted'}) do redis.call('HDEL', key(name), lane) end
end

-- What the sweep remembers of a lane goes when no record is queued there, and no message.
local function prune_lane(lane)
  if redis.call('ZCARD', key('lane:' .. lane)) > 0 then return end
  redis.call('HDEL', key('marks'), lane)
  forget_turns(lane)
  if redis.call('LLEN', list_of(lane)) == 0 then
    redis.call('SREM', key('lanes'), lane)
    redis.call('HDEL', key('watermarks'), lane)
  end
end

-- Adds an entry to the stream of a prompt's texts.
local function add_to_stream(id, position, ...)
  local stream = key('stream:' .. id .. ':' .. position)
  redis.call('XADD', stream, 'MAXLEN', '~', STREAM_ENTRIES, '*', ...)
  redis.call('EXPIRE', stream, STREAM_S)
end

-- First write wins: keeps those answers (position, JSON, position, JSON, ...) that are not there yet, and tells
-- the submitter and the readers of streams of them.
local function answer(id, answers)
  local positions, json_of = {}, {}
  for i = 1, #answers, 2 do
    positions[#positions + 1] = answers[i]
    json_of[answers[i]] = json_of[answers[i]] or answers[i + 1]
  end
  local news = {}
  for _, position in ipairs(unanswered(id, positions)) do
    news[#news + 1] = position
    news[#news + 1] = json_of[position]
  end
  if #news == 0 then return end
  local reply, stream = unpack(redis.call('HMGET', key('record:' .. id), 'reply', 'stream'))
  local too_old = text(broker_time() / 1000 - REPLIES_S * 1000)
  in_parts(news, function(...)
    redis.call('HSET', key('answers:' .. id), ...)
    if reply ~= '' then redis.call('XADD', reply, 'MINID', '~', too_old, '*', 'record', id, ...) end
  end)
  if reply ~= '' then redis.call('EXPIRE', reply, REPLIES_S) end
  if not stream then return end
  for i = 1, #news, 2 do
    add_to_stream(id, news[i], 'end', '1')
  end
end

-- Whether an answer is an error, as protocol.answer_to_wire and bury write one.
local function is_error(json) return string.sub(json, 1, 9) == '{"error":' end

local function answer_all(id, positions, json)
  local answers = {}
  for _, position in ipairs(positions) do
    answers[#answers + 1] = position
    answers[#answers + 1] = json
  end
  answer(id, answers)
end

-- Answers what nobody holds of a record with `json`; what workers hold is left to them.
local function end_open(id, json, now)
  answer_all(id, split(redis.call('HGET', key('record:' .. id), 'open')), json)
  give_up_turn(id)
  redis.call('HSET', key('record:' .. id), 'open', '')
  leave_lane(id)
  if is_complete(id) then conclude(id, now) end
end

local function all_positions(count)
  local positions = {}
  for position = 0, count - 1 do positions[#positions + 1] = position end
  return positions
end

-- How often each of `positions` was lost with its worker.
local function losses_of(id, positions)
  local losses = {}
  if redis.call('HEXISTS', key('record:' .. id), 'lost') == 0 then return losses end
  for _, position in ipairs(positions) do
    local lines = redis.call('HGET', key('record:' .. id), 'lost:' .. position) or ''
    losses[position] = select(2, string.gsub(lines, '\n', ''))
  end
  return losses
end
