-- claim: queue paused -> paused; gone -> skip; same token -> granted again (the reply was lost); all that is open held by others -> leave;
-- else granted: no more prompts than the worker has room for, and what is left is offered again at once.

-- After this another worker may begin to wait as well.
local WAITING_MS = 30000

local id, token, room, lease_ms, lane, score, deliveries = unpack(ARGV, 3, 9)
local record = key('record:' .. id)
write_even_when_full()
local now = clock()

-- In a queue that is paused nothing begins: the pointer goes back. What this token was granted already stays its, and the
-- answer of a plain call is still handed over.
local queued_in, still_open = unpack(redis.call('HMGET', record, 'lane', 'open'))
if queued_in and redis.call('HEXISTS', key('paused'), model_queue(queued_in)) == 1 and not is_complete(id)
  and redis.call('HEXISTS', record, 'claim:' .. token) == 0 then
  if still_open ~= '' then queue_up(id, again_lane(queued_in), now) end
  return {'paused'}
end

-- Every claim reports its pointer's score: what is queued below the highest score popped may have lost its pointer. A
-- score from the future was forged, and would cast suspicion on all that is to come.
if lane ~= '' and redis.call('ZCARD', key('lane:' .. lane)) > 0 then
  local highest = tonumber(redis.call('HGET', key('watermarks'), lane) or '0')
  if tonumber(score) > highest and tonumber(score) <= now then redis.call('HSET', key('watermarks'), lane, score) end
end

local keep, deadline = unpack(redis.call('HMGET', record, 'keep', 'deadline'))
keep = keep == '1'
-- No record, or one that the next sweep ends.
if not deadline or tonumber(deadline) <= now then return {'gone'} end
if not keep and is_complete(id) then
  drop(id)
  return {'gone'}
end

local answer = keep and redis.call('HGET', key('answers:' .. id), '0') or ''
local positions = split(redis.call('HGET', record, 'claim:' .. token))
local open = split(redis.call('HGET', record, 'open'))
-- A kept record is claimed once more after its answer, by the worker that has to hand it to Celery.
if not keep then positions, open = unanswered(id, positions), unanswered(id, open) end
local losses = losses_of(id, #positions > 0 and positions or open)
if #positions == 0 then
  -- A prompt at its last delivery runs alone in its worker: if that dies, it is known whose doing it was. Its turn
  -- comes when no other prompt of the record is open.
  local usual, last, rest = {}, {}, {}
  for _, position in ipairs(open) do
    local list = (losses[position] or 0) + 1 >= tonumber(deliveries) and answer == '' and last or usual
    if list == usual and #usual >= tonumber(room) then list = rest end
    list[#list + 1] = position
  end
  positions = usual
  if #usual == 0 and #last > 0 then
    -- The worker takes nothing new until it is empty, so only one of a model's workers waits for that. Meanwhile the
    -- record stays where it is: the sweep soon finds that its pointer is gone.
    local turn = key('waiting:' .. model_queue(redis.call('HGET', record, 'lane')))
    local waiting = redis.call('GET', turn)
    if waiting and redis.call('ZSCORE', key('leases'), waiting) then return {'leased'} end
    redis.call('SET', turn, token, 'PX', WAITING_MS)
    positions = {table.remove(last, 1)}
    redis.call('HSET', record, 'alone:' .. token, 'waiting')
  end
  for _, position in ipairs(last) do rest[#rest + 1] = position end
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

local version, requests, count, entered = unpack(redis.call('HMGET', record, 'version', 'requests', 'count', 'entered'))
if join(positions) ~= join(all_positions(count)) then
  local lines, taken = {}, {}
  for line in string.gmatch(requests, '[^\n]+') do lines[#lines + 1] = line end
  for _, position in ipairs(positions) do taken[#taken + 1] = lines[position + 1] end
  requests = table.concat(taken, '\n')
end
local attempts = {}
for i, position in ipairs(positions) do attempts[i] = 1 + (losses[position] or 0) end
return {'granted', version, requests, join(positions), join(attempts), text(now - entered), text(deadline - now),
  answer, redis.call('HEXISTS', record, 'alone:' .. token)}
