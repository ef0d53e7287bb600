-- enter: all answers there -> done; record there -> its place; queue or broker full -> refused; else write it, in its
-- lane with a score of now.
-- Plain Celery calls (keep = 1) are entered by the worker that has just popped their message: no pointer is
-- published, and if the worker dies now, the sweep finds a record without one. Queued again, the record's own
-- message (head .. delivery tag .. tail) is published, under the same Celery id.
local id, version, lane, count, requests, reply, timeout_ms, ttl = unpack(ARGV, 3, 10)
local limit, memory_percent, keep, head, tail, stream, submitter = unpack(ARGV, 11, 17)
local record = key('record:' .. id)

-- Whether the broker's memory is so full that answers, which must be written, need the rest of it. It is asked when what
-- was free is used up, at our own reckoning, and twice a second at most.
local function memory_is_full()
  local size = 2 * #requests + 2000
  local free = tonumber(redis.call('GET', key('memory')) or '0')
  if free < size then
    local info = redis.call('INFO', 'memory')
    local most = tonumber(string.match(info, '\nmaxmemory:(%d+)'))
    free = most * memory_percent / 100 - tonumber(string.match(info, 'used_memory:(%d+)'))
    if most == 0 then free = 1e15 end
    if free < size then return true end
    redis.call('SET', key('memory'), text(free), 'PX', 500)
  end
  redis.call('DECRBY', key('memory'), size)
  return false
end

if redis.call('HLEN', key('answers:' .. id)) >= tonumber(count) then return 'answered' end
if redis.call('EXISTS', record) == 1 then return 'known' end
if keep == '1' then
  -- It is in the broker already, and leaves it only through here.
  write_even_when_full()
else
  local held = tonumber(redis.call('HGET', key('prompts'), (queue_and_priority(lane))) or '0')
  if held + count > tonumber(limit) then return 'full ' .. held end
  -- Messages of records that are over stay until a worker takes them: they count as well.
  if redis.call('LLEN', list_of(lane)) >= tonumber(limit) then return 'full ' .. limit end
  if memory_is_full() then return 'full' end
end

local now = clock()
local deadline = text(now + tonumber(timeout_ms) * 1000)
redis.call('HSET', record, 'version', version, 'count', count, 'requests', requests, 'open', join(all_positions(count)),
  'reply', reply, 'entered', text(now), 'deadline', deadline, 'ttl', ttl)
if stream == '1' then redis.call('HSET', record, 'stream', '1') end
redis.call('ZADD', key('deadlines'), deadline, id)
count_prompts(lane, count)
if keep == '1' then
  redis.call('HSET', record, 'keep', '1', 'head', head, 'tail', tail)
  join_lane(id, lane, now)
else
  -- A client that names no submitter is one of its own.
  if submitter ~= '' then redis.call('HSET', record, 'submitter', submitter) end
  redis.call('HSET', record, 'turn', exact(next_turn(lane, submitter ~= '' and submitter or reply, count)))
  queue_up(id, lane, now)
end
return 'entered'
