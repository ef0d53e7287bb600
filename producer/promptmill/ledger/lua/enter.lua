-- enter: all answers there -> done; record there -> its place; else write it, in its lane with a score of now.
-- Plain Celery calls (keep = 1) are entered by the worker that has just popped their message: no pointer is
-- published, and if the worker dies now, the sweep finds a record without one. Queued again, the record's own
-- message (head .. delivery tag .. tail) is published, under the same Celery id.
local id, version, lane, count, requests, reply = unpack(ARGV, 3, 8)
local timeout_ms, ttl, keep, head, tail = unpack(ARGV, 9, 13)
local record = key('record:' .. id)

if redis.call('HLEN', key('answers:' .. id)) >= tonumber(count) then return 'answered' end
if redis.call('EXISTS', record) == 1 then return 'known' end

local now = clock()
local deadline = text(now + tonumber(timeout_ms) * 1000)
redis.call('HSET', record, 'version', version, 'count', count, 'requests', requests, 'open', join(all_positions(count)),
  'reply', reply, 'entered', text(now), 'deadline', deadline, 'ttl', ttl)
redis.call('ZADD', key('deadlines'), deadline, id)
if keep == '1' then
  redis.call('HSET', record, 'keep', '1', 'head', head, 'tail', tail)
  join_lane(id, lane, now)
else
  queue_up(id, lane, now)
end
return 'entered'
