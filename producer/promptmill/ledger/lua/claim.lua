-- claim: gone -> skip; same token -> granted again (the reply was lost); all that is open held by others -> leave;
-- else granted: no more prompts than the worker has room for, and what is left is offered again at once.
local id, token, room, lease_ms, lane, score = unpack(ARGV, 3, 8)
local record = key('record:' .. id)
local now = clock()

-- Every claim reports its pointer's score: what is queued below the highest score popped may have lost its pointer.
if lane ~= '' and tonumber(score) > tonumber(redis.call('HGET', key('watermarks'), lane) or '0') then
  redis.call('HSET', key('watermarks'), lane, score)
end

local keep, deadline = unpack(redis.call('HMGET', record, 'keep', 'deadline'))
keep = keep == '1'
-- No record, or one that the next sweep ends.
if not deadline or tonumber(deadline) <= now then return {'gone'} end
if not keep and is_complete(id) then
  drop(id)
  return {'gone'}
end

local positions = split(redis.call('HGET', record, 'claim:' .. token))
local open = split(redis.call('HGET', record, 'open'))
-- A kept record is claimed once more after its answer, by the worker that has to hand it to Celery.
if not keep then positions, open = unanswered(id, positions), unanswered(id, open) end
if #positions == 0 then
  local rest = {}
  for i, position in ipairs(open) do
    local list = i <= tonumber(room) and positions or rest
    list[#list + 1] = position
  end
  redis.call('HSET', record, 'open', join(rest))
  if #rest == 0 then
    leave_lane(id)
  else
    queue_up(id, again_lane(redis.call('HGET', record, 'lane')), now)
  end
  if #positions == 0 then return {'leased'} end
end
redis.call('HSET', record, 'claim:' .. token, join(positions))
redis.call('ZADD', key('leases'), text(now + tonumber(lease_ms) * 1000), token)

local version, requests, entered, lost =
  unpack(redis.call('HMGET', record, 'version', 'requests', 'entered', 'lost'))
local attempts = {}
for i, position in ipairs(positions) do
  attempts[i] = 1 + (lost and tonumber(redis.call('HGET', record, 'lost:' .. position) or '0') or 0)
end
return {'granted', version, requests, join(positions), join(attempts), text(now - entered), text(deadline - now),
  keep and redis.call('HGET', key('answers:' .. id), '0') or ''}
