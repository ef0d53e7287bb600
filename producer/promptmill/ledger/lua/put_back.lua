-- put back: ends a claim without counting an attempt; what it has not answered is queued again, at the front.
local id, token = ARGV[3], ARGV[4]
local record = key('record:' .. id)
write_even_when_full()
local held = redis.call('HGET', record, 'claim:' .. token)
end_claim(id, token)
if not held then return 0 end
local back = split(held)
if redis.call('HGET', record, 'keep') ~= '1' then back = unanswered(id, back) end
if #back == 0 then return 0 end
redis.call('HSET', record, 'open', redis.call('HGET', record, 'open') .. ' ' .. join(back))
queue_up(id, again_lane(redis.call('HGET', record, 'lane')), clock())
return #back
