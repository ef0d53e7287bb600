-- enter: all answers there -> done; record there -> its place; its idempotency key held by another -> that one, or a
-- conflict; queue or broker full -> refused; else write it, in its lane with a score of now, and its key.
-- Plain Celery calls (keep = 1) are entered by the worker that has just popped their message: no pointer is
-- published, and if the worker dies now, the sweep finds a record without one. Queued again, the record's own
-- message (head .. delivery tag .. tail) is published, under the same Celery id.
local id, version, lane, count, requests, reply, timeout_ms, ttl = unpack(ARGV, 3, 10)
local limit, memory_percent, keep, head, tail, stream, submitter, sha, digest = unpack(ARGV, 11, 19)
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

-- The record that holds the key, and its digest. One that failed, was cancelled, has expired or is gone, with its answer,
-- holds it no more. (Records with a key are of one prompt.)
local function holder_of_key()
  local holder, held_digest = unpack(redis.call('HMGET', key('key:' .. sha), 'record', 'digest'))
  if not holder then return nil end
  local answer = redis.call('HGET', key('answers:' .. holder), '0')
  if answer then
    if is_error(answer) then return nil end
    return holder, held_digest
  end
  local deadline = redis.call('HGET', key('record:' .. holder), 'deadline')
  if deadline and tonumber(deadline) > broker_time() then return holder, held_digest end
end

if redis.call('HLEN', key('answers:' .. id)) >= tonumber(count) then return 'answered' end
if redis.call('EXISTS', record) == 1 then return 'known' end
if sha ~= '' then
  local holder, held_digest = holder_of_key()
  if holder and held_digest ~= digest then return 'conflict' end
  if holder then return 'same ' .. holder end
end
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
count_prompts(lane, tonumber(count))
if sha ~= '' then
  redis.call('HSET', key('key:' .. sha), 'record', id, 'digest', digest)
  redis.call('EXPIRE', key('key:' .. sha), text(math.ceil(timeout_ms / 1000) + ttl))
end
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
